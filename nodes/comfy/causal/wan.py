"""ComfyUI's own causal Wan model with its KV cache kept by us, under ComfyUI's own sampler.

Core (0.21 on) does this: `sample_ar_video` has `CausalWanModel.init_kv_caches` allocate every layer's keys and values for the
whole video; each pass, `CausalWanSelfAttention.forward` writes the block's at `cache["end"]` and attends to all up to there;
between passes the sampler takes `end` back; the pass at noise level 0 comes last and leaves what later blocks see. A clone of
the MODEL gets object patches for those two functions, and wrappers around sampling; ComfyUI puts them in when it loads the clone
and takes them out after. Nothing is kept on the network: core carries our `LayerSlot`s to attention in place of its dictionaries.
Hooks on a MODEL without QVG KV Cache, as our loader makes it, do something only under our own sampler, which has no other cache.
"""

from __future__ import annotations

import inspect
import types
from dataclasses import replace
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....qvg import CacheSpec, QVGConfig, UnsupportedModelError
from ...records import RECORDS
from ..keep import KeptRun, finished_blocks
from ..memory import cache_bytes_needed, give_back, make_room
from ..model_plan import refuse_what_cannot_fit
from ..progress import say, say_how_it_ended
from ..settings import HOOKED_KEY, SETTINGS_KEY, settings_of
from . import prompt_memory
from .plan import OPTIONS, CausalPlan, check_own, make_plan
from .run import CausalPass, CausalRun, LayerSlot
from .shape import causal_shape

_KEY = "qvg"
# In the sampler's `ar_state`: the `CausalPass` that a loop of ours says it is about to make.
PASS_KEY = "qvg_pass"
_INIT_ARGUMENTS = ["batch_size", "max_seq_len", "device", "dtype"]
_ATTENTION_PARTS = ("q", "k", "v", "o", "norm_q", "norm_k", "num_heads", "head_dim")


def attach(clone: Any) -> None:
    """Have a clone of a causal Wan MODEL, which nobody else has yet, keep its cache as its settings say; without settings, under
    our own sampler, exactly."""
    network = clone.model.diffusion_model
    _check_network(network)
    options = clone.model_options.setdefault("transformer_options", {})
    options[HOOKED_KEY] = True
    settings = settings_of(clone.model_options)
    prompt = prompt_memory.attach(clone, settings.merge_padding, settings.prompt_rows)
    sampling = CausalSampling(prompt, SETTINGS_KEY in options)
    clone.add_object_patch("diffusion_model.init_kv_caches", sampling.init_kv_caches)
    for layer, block in enumerate(network.blocks):
        # A patch becomes an attribute of the module, which does not bind it.
        forward = types.MethodType(_attention, block.self_attn)
        clone.add_object_patch(f"diffusion_model.blocks.{layer}.self_attn.forward", forward)
    wrappers = {
        WrappersMP.OUTER_SAMPLE: sampling.outer_sample,
        WrappersMP.PREPARE_SAMPLING: sampling.prepare_sampling,
        WrappersMP.PREDICT_NOISE: sampling.predict_noise,
    }
    for kind, wrapper in wrappers.items():
        clone.remove_wrappers_with_key(kind, _KEY)  # of an earlier cache node
        clone.add_wrapper_with_key(kind, _KEY, wrapper)


def check_config(base_model: Any, config: QVGConfig) -> None:
    """Raise ConfigError for what does not fit this model's heads; how long and large the video is shows when sampling begins."""
    network = base_model.diffusion_model
    CacheSpec(len(network.blocks), network.num_heads, network.head_dim, tokens_per_frame=1 << 16).check(config)


def _check_network(network: Any) -> None:
    attention = network.blocks[0].self_attn
    missing = [f"self_attn.{name}" for name in _ATTENTION_PARTS if not hasattr(attention, name)]
    missing += [] if "kv_cache" in inspect.signature(type(attention).forward).parameters else ["self_attn.forward(kv_cache)"]
    arguments = list(inspect.signature(type(network).init_kv_caches).parameters)[1:]
    missing += [] if arguments == _INIT_ARGUMENTS else [f"init_kv_caches({', '.join(_INIT_ARGUMENTS)})"]
    if missing:
        raise UnsupportedModelError(
            f"this ComfyUI's causal Wan model has no {', '.join(missing)}, which QVG attaches to; ComfyUI 0.21 to 0.33 have it: "
            "update QVG, or go back to one of these"
        )


def _attention(
    module: Any, x: Tensor, freqs: Tensor, kv_cache: Any = None, transformer_options: dict[str, Any] | None = None
) -> Tensor:
    """Core's self-attention, its cache replaced by ours in a run of ours. x [B, S, H * D] -> x's shape."""
    if not isinstance(kv_cache, LayerSlot):
        options: dict[str, Any] = {} if transformer_options is None else transformer_options
        own: Tensor = type(module).forward(module, x, freqs, kv_cache=kv_cache, transformer_options=options)
        return own
    shape = (*x.shape[:2], module.num_heads, module.head_dim)
    q, k, v = module.norm_q(module.q(x)).view(shape), module.norm_k(module.k(x)).view(shape), module.v(x).view(shape)
    out: Tensor = module.o(kv_cache.attend(q, k, v, freqs))
    return out


class CausalSampling:
    """The hooks of one MODEL: `plan` and `run` are there only while it is sampled. `has_settings`: of QVG KV Cache; core's own
    loop is left alone without."""

    def __init__(self, prompt: prompt_memory.PromptMemory, has_settings: bool) -> None:
        self.prompt, self.has_settings = prompt, has_settings
        self.plan: CausalPlan | None = None
        self.run: CausalRun | None = None
        self.kept: KeptRun | None = None

    def init_kv_caches(self, batch_size: int, max_seq_len: int, device: Any, dtype: Any) -> list[Any]:
        """In core's place: nothing is allocated, and `max_seq_len`, the video's tokens, is no limit."""
        if self.plan is None and not self.has_settings:
            network = self.prompt.network
            own: list[Any] = type(network).init_kv_caches(network, batch_size, max_seq_len, device, dtype)
            return own
        if self.plan is None:
            raise UnsupportedModelError(
                "something other than a ComfyUI sampler asked this model for a KV cache; sample with SamplerCustomAdvanced, or "
                "bypass QVG KV Cache"
            )
        self.run = CausalRun(self.plan, self.kept)
        return self.run.slots()

    def outer_sample(
        self,
        executor: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The whole run: refuse what cannot work before weights are loaded, and free the cache however it ends."""
        guider = executor.class_obj
        if not self.has_settings and OPTIONS not in getattr(sampler, "extra_options", {}):
            check_own(guider, noise)
            return self._as_core_does(executor, noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
        plan = make_plan(guider, noise, sampler, sigmas, denoise_mask)
        shape = causal_shape(guider.model_patcher)
        refuse_what_cannot_fit(guider.model_patcher, shape, plan.settings.config, plan.spec, plan.cached_frames, plan.grid)
        self.plan = plan
        try:
            with finished_blocks(guider.model_patcher.model, plan.given_frames, plan.keep_finished) as self.kept:
                samples: Tensor = executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
            if self.run is not None:
                record = replace(self.run.record(guider.model_patcher.load_device), prompt=self.prompt.counted())
                RECORDS.add(samples, record)
                say(record.headline())
            return samples
        except BaseException as error:  # an interrupt is no Exception to ComfyUI
            if self.run is not None:
                self.run.cache.reset()
                say_how_it_ended(error, self.run.cache, len(self.run.blocks), plan.blocks)
                if self.kept is not None:
                    self.kept.keep([block.latent for block in self.run.blocks])
            raise
        finally:
            if self.run is not None:
                self.run.cache.reset()
            self.plan = self.run = self.kept = None
            self.prompt.clear()
            give_back()

    def _as_core_does(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        try:
            samples: Tensor = executor(*args, **kwargs)
            return samples
        finally:
            self.prompt.clear()

    def prepare_sampling(self, executor: Any, model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        """Core reserves activations of all frames at once and nothing for the cache; a pass sees one block of them."""
        plan = self.plan
        if plan is None:
            return executor(model, noise_shape, *args, **kwargs)
        result = executor(model, [*noise_shape[:2], plan.spec.chunk_frames, *noise_shape[3:]], *args, **kwargs)
        make_room(cache_bytes_needed(plan.spec, plan.settings.config, plan.cached_frames) + plan.joined_bytes, model)
        return result

    def predict_noise(self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], *args: Any) -> Any:
        """One pass of the network over one block. Under core's loop the one at noise level 0 leaves what later ones will see."""
        state = model_options.get("transformer_options", {}).get("ar_state")
        if self.run is None or state is None:
            return executor(x, timestep, model_options, *args)
        coming = state.get(PASS_KEY) or CausalPass(state["start_frame"], x.shape[2], bool((timestep == 0).all()))
        self.run.begin_pass(coming)
        result = executor(x, timestep, model_options, *args)
        self.run.end_pass(x)
        return result
