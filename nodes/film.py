"""The demo film: its model and pictures' VAE, its prompts, and what its films start from."""

from __future__ import annotations

from typing import Any

from ..qvg.errors import ConfigError
from ..qvg.models.demo_film.directions import BLOCK_FRAMES, DIRECTIONS, TURN_COLUMNS, Direction, View, prompt_rows
from ..qvg.sampling.film import FilmPlan
from .api import CATEGORY, io
from .widgets import Node, videos_at_once, whole

PROMPTS = {direction.text: direction for direction in DIRECTIONS}
RIGHT, LEFT = (Direction(f"turn {way}", "day").text for way in ("right", "left"))
MOST_FRAMES = 60 * TURN_COLUMNS  # far beyond what it was trained on
_LAST_SEED = (1 << 40) - 1


class QVGLoadDemoFilm(Node):
    """The 4.3 M parameter film model in assets/."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QVGLoadDemoFilm",
            display_name="Load Demo Film",
            category=CATEGORY,
            description="A small film model that is a true causal Wan: time in its positions, blocks of three frames, a "
            "prompt. ComfyUI's own nodes for autoregressive video run it, and QVG Causal Sampler. It comes with this pack and "
            "runs on any machine.",
            search_aliases=["qvg", "causal wan", "self forcing demo", "kv cache demo"],
            inputs=[],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="ComfyUI's own causal Wan, with its exact cache; QVG KV Cache behind it compresses that.",
                ),
                io.Vae.Output(display_name="vae", tooltip="Of this model alone: 128x128 pictures, one for each latent frame."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from .comfy.demo.film import load

        return io.NodeOutput(*load())


class QVGFilmPrompt(Node):
    """One of the film's prompts, and another for later."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = list(PROMPTS)
        return io.Schema(
            node_id="QVGFilmPrompt",
            display_name="Film Prompt",
            category=CATEGORY,
            description="What the demo film's camera and light do. The film model has no text encoder: it knows these prompts "
            "and no others.",
            search_aliases=["qvg", "demo film prompt", "clip text encode"],
            inputs=[
                io.Combo.Input(
                    "prompt",
                    options=names,
                    default=RIGHT,
                    tooltip="Where the camera goes, one column of the round picture a frame, and the light that it goes to. A "
                    "turn is 36 frames; swing goes back and forth over half of it; look cuts to a place and stays.",
                ),
                io.Combo.Input(
                    "next_prompt",
                    options=names,
                    default=LEFT,
                    tooltip="For a film that changes: the second output, to next_conditioning of Prompt at Frame.",
                    optional=True,
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="The prompt; for BasicGuider or Prompt at Frame."),
                io.Conditioning.Output(
                    display_name="next_conditioning", tooltip="The next prompt; for next_conditioning of Prompt at Frame."
                ),
            ],
        )

    @classmethod
    def execute(cls, prompt: str, next_prompt: str = LEFT) -> io.NodeOutput:
        return io.NodeOutput(*([[prompt_rows(PROMPTS[name]), {}]] for name in (prompt, next_prompt)))


class QVGFilmStart(Node):
    """The beginning of a film that the model has never seen, and room for the rest."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QVGFilmStart",
            display_name="Film Start",
            category=CATEGORY,
            description="Paints a scene that the film model has never seen and gives it the first frames, by default one whole "
            "turn of the camera. What follows it has to remember. For Sampler AR Video and QVG Causal Sampler.",
            search_aliases=["qvg", "start frames", "empty latent", "video start"],
            inputs=[
                io.Model.Input("model", lazy=True, tooltip="From Load Demo Film, or from QVG KV Cache behind it."),
                io.Vae.Input("vae", lazy=True, tooltip="Of Load Demo Film: makes latents of the given frames."),
                io.Combo.Input(
                    "prompt",
                    options=list(PROMPTS),
                    default=RIGHT,
                    tooltip="What camera and light do in the given frames; as a rule that of Film Prompt.",
                ),
                io.Int.Input(
                    "scene_seed",
                    default=1,
                    min=0,
                    max=_LAST_SEED,
                    control_after_generate=False,
                    tooltip="Which scene is painted.",
                ),
                io.Int.Input(
                    "frames",
                    default=108,
                    tooltip="Of the whole film, given ones included: one picture each.",
                    **whole(BLOCK_FRAMES, MOST_FRAMES, BLOCK_FRAMES),
                ),
                io.Int.Input(
                    "given_frames",
                    default=TURN_COLUMNS,
                    tooltip="Frames at the beginning that are given, as they really look. 36 are one turn; with 0 the model "
                    "makes up everything, and soon paints mush.",
                    **whole(0, MOST_FRAMES, BLOCK_FRAMES),
                ),
                io.Int.Input(
                    "heading",
                    default=0,
                    min=0,
                    max=TURN_COLUMNS - 1,
                    tooltip="Where the camera looks before the first frame, of 36 directions.",
                    advanced=True,
                    optional=True,
                ),
                videos_at_once(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Carries the given frames; for the guider."),
                io.Latent.Output(display_name="latent", tooltip="Room for the whole film; for SamplerCustomAdvanced."),
                io.Image.Output(
                    display_name="real_film", tooltip="How the film really goes on under this prompt, to compare with."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        prompt: str,
        scene_seed: int,
        frames: int,
        given_frames: int,
        heading: int = 0,
        batch_size: int = 1,
    ) -> io.NodeOutput:
        if frames <= given_frames:
            raise ConfigError(
                f"frames is {frames}, but {given_frames} are given and at least one block must be generated; use "
                f"{given_frames + BLOCK_FRAMES} or more"
            )
        from .comfy.demo.film import start

        direction = PROMPTS[prompt]
        begin = View(heading, -1 if direction.camera == "turn left" else 1, float(direction.light == "day"))
        plan = FilmPlan(scene_seed, begin, (direction,) * (frames // BLOCK_FRAMES))
        return io.NodeOutput(*start(model, vae, plan, given_frames, batch_size))
