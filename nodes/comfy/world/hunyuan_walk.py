"""A walk on HunyuanVideo 1.5 inside ComfyUI: core's network behind the guider, its text read once, a memory for each text."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ....qvg import ConfigError, UnsupportedModelError
from ....qvg.camera.overlap import FieldOfView
from ....qvg.models.common.world_schedule import CHUNK_FRAMES
from ....qvg.models.worldplay_hunyuan.network import Attend, Recording, WorldPlayHunyuan
from ....qvg.models.worldplay_hunyuan.text import TextRows, Words, without_padding
from ....qvg.sampling.world_hunyuan import Guidance, HunyuanWorld
from ...prompts import PromptStart
from ..progress import Progress, say
from .face import PASS_KEY
from .run import WorldPlan, conds_from

# What ComfyUI's guiders call the prompt, and the one that is to be kept away from.
WANTED, UNWANTED = "positive", "negative"


@dataclass
class HunyuanPass:
    """One pass of the network. t, labels [B, F], condition [B, F, C + 1, h, w]; either `attend`, a denoise step, or `recording`,
    a context pass, which gives nothing back. `text` names what is read, `texts` what has been. `runs` counts how often the
    network was run."""

    t: Tensor
    labels: Tensor
    condition: Tensor
    text: str
    texts: dict[str, TextRows]
    attend: Attend | None = None
    recording: Recording | None = None
    runs: int = field(default=0)


def hunyuan_world(
    plan: WorldPlan, guider: Any, extra_args: dict[str, Any], progress: Progress
) -> tuple[GuidedHunyuan, HunyuanWorld]:
    """What `sample_world` walks through. With guidance above 1 the negative text has a memory of its own."""
    for conds in guider.conds.values():
        for cond in conds:
            # Core's picture and mask are for a whole video at once; ours go with each chunk.
            cond.get("model_conds", {}).pop("c_concat", None)
    model = GuidedHunyuan(guider, extra_args, progress, plan.cfg > 1)
    seen = FieldOfView(dtype=torch.float64)
    world = HunyuanWorld(model, plan.memory(), None, plan.options.mode, plan.rule, seen)
    if plan.cfg > 1:
        world.guidance = Guidance(UNWANTED, plan.memory(), plan.cfg)
    return model, world


class GuidedHunyuan:
    """Core's network behind ComfyUI's guider, so that wrappers, hooks and patches on the MODEL apply. x [B, F, 2C + 1, h, w].

    With guidance every text is run by itself, through core's sampling function without the guider's mixing: `HunyuanWorld` mixes.
    """

    def __init__(self, guider: Any, extra_args: dict[str, Any], progress: Progress, apart: bool):
        self._guider, self._progress, self._apart = guider, progress, apart
        self._options, self._seed = extra_args["model_options"], extra_args.get("seed")
        self._conds: dict[str, list[Any]] = guider.conds
        self._texts: dict[str, TextRows] = {}
        self._start: PromptStart | None = None

    def __call__(self, x: Tensor, t: Tensor, prompt: str | None, attend: Attend, labels: Tensor | None = None) -> Tensor:
        level = float(t[0, -1]) / 1000
        video, clean = self._pass(x, t, prompt or WANTED, labels, attend=attend)
        self._progress.passed(clean)
        return ((video - clean) / level).transpose(1, 2)

    def record(self, x: Tensor, t: Tensor, prompt: str | None, recording: Recording, labels: Tensor | None = None) -> None:
        video, _ = self._pass(x, t, prompt or WANTED, labels, recording=recording)
        self._progress.passed(video[:, :, -CHUNK_FRAMES:])

    def take_prompt(self, start: PromptStart | None) -> None:
        """What holds from here on, and is read anew where it is another; None: all that the guider has."""
        self._guider.conds = conds_from(self._conds, start)
        if start != self._start:
            self._texts, self._start = {}, start

    def _pass(
        self,
        x: Tensor,
        t: Tensor,
        prompt: str,
        labels: Tensor | None,
        attend: Attend | None = None,
        recording: Recording | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The latents that were run, and what they are taken for once clean; each [B, C, F, h, w]."""
        channels = x.shape[2] // 2
        labels = torch.zeros_like(t) if labels is None else labels
        coming = HunyuanPass(t, labels, x[:, :, channels:], prompt, self._texts, attend, recording)
        video, options = x[:, :, :channels].transpose(1, 2), self._options.setdefault("transformer_options", {})
        options[PASS_KEY] = coming
        try:
            clean = self._run(video, video.new_full(video.shape[:1], float(t[0, -1]) / 1000), prompt)
        finally:
            del options[PASS_KEY]
        if coming.runs != 1:
            raise ConfigError(
                f"a step ran the network {coming.runs} times, but a world's pass must run it once; take out the node that skips "
                "or repeats passes (step caches; perturbed, self-attention or skip-layer guidance)"
            )
        return video, clean

    def _run(self, video: Tensor, sigma: Tensor, prompt: str) -> Tensor:
        if not self._apart:
            clean: Tensor = self._guider(video, sigma, model_options=self._options, seed=self._seed)
            return clean
        conds = [self._guider.conds[prompt]]
        (clean,) = comfy.samplers.calc_cond_batch(self._guider.inner_model, conds, video, sigma, self._options)
        return clean


def hunyuan_forward(
    executor: Any,
    x: Tensor,
    timestep: Tensor,
    context: Tensor,
    y: Any = None,
    txt_byt5: Tensor | None = None,
    clip_fea: Tensor | None = None,
    guidance: Any = None,
    attention_mask: Tensor | None = None,
    guiding_frame_index: Any = None,
    ref_latent: Any = None,
    disable_time_r: bool = False,
    control: Any = None,
    transformer_options: Mapping[str, Any] | None = None,
    **unused: Any,
) -> Tensor:
    """Core's wrapper around the network: one pass of ours in place of core's. x [B, C, F, h, w] -> velocity, the same shape."""
    coming: HunyuanPass | None = (transformer_options or {}).get(PASS_KEY)
    if coming is None:
        raise UnsupportedModelError(
            "WorldPlay paints a world chunk after chunk, and needs a sampler that does so and knows the camera; connect 'World "
            "Sampler' to SamplerCustomAdvanced"
        )
    if x.shape[0] != coming.t.shape[0]:
        raise ConfigError(
            f"the model was handed {x.shape[0]} videos at once, but the world has {coming.t.shape[0]}; use one prompt without "
            "areas or masks"
        )
    coming.runs += 1
    states = (context, attention_mask, txt_byt5, clip_fea)
    # One moment's memory is no part of a compiled network. Who has not imported torch._dynamo does not compile.
    run = torch.compiler.disable(_network_pass) if "torch._dynamo" in sys.modules else _network_pass
    velocity: Tensor = run(executor.class_obj, x, states, coming)
    return velocity


def _network_pass(network: Any, x: Tensor, states: tuple[Tensor, Any, Any, Any], coming: HunyuanPass) -> Tensor:
    """A context pass gives x back. The text is read before the first pass that needs it."""
    passes = WorldPlayHunyuan(network, x.dtype)
    if coming.text not in coming.texts:
        coming.texts[coming.text] = rows = passes.read_prompt(_words(*states))
        say(f"{coming.text} text: {rows.tokens} tokens, {rows.nbytes / 1e6:.1f} MB of keys and values, kept exact")
    condition, t, labels = (each.to(x.device) for each in (coming.condition, coming.t, coming.labels))
    read, rows = torch.cat([x.transpose(1, 2), condition.to(x.dtype)], 2), coming.texts[coming.text]
    if coming.recording is not None:
        passes.record(read, t, rows, coming.recording, labels)
        return x
    assert coming.attend is not None
    return passes(read, t, rows, coming.attend, labels).transpose(1, 2)


def _words(text: Tensor, mask: Tensor | None, byt5: Tensor | None, vision: Tensor | None) -> Words:
    """Of the first video of a batch; all have one prompt."""
    kept = without_padding(text[:1], None if mask is None else mask[:1])
    if kept is None:
        raise ConfigError("the prompt has no tokens; write one, or take it from HunyuanVideo 1.5's text encoder")
    return Words(kept, None if byt5 is None else without_padding(byt5[:1], None), None if vision is None else vision[:1])
