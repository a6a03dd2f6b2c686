"""What the demo world starts from, and the sampler that goes from there."""

from __future__ import annotations

from typing import Any

import torch

from ..qvg.demo.walk import GIVEN_FRAMES, plan_walk
from ..qvg.models.demo_world import STEP_PIXELS, DemoWorldConfig
from ..qvg.models.demo_world.painted_map import JUDGED, paint
from .api import CATEGORY, Camera, io
from .camera import CameraPath
from .comfy.room import require_room
from .widgets import Node, videos_at_once


class QVGDemoWorldStart(Node):
    """Camera to conditioning and the latent that sampling starts from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QVGDemoWorldStart",
            display_name="Demo World Start",
            category=CATEGORY,
            description="Paints a map that the model has never seen, puts the camera in its middle, and gives the model the "
            "first four frames. Everything after that it has to make up, and to remember.",
            search_aliases=["qvg", "start frames", "empty latent"],
            inputs=[
                Camera.Input("camera", tooltip="From QVG Camera Path; says how long the video is and where each frame stands."),
                io.Int.Input(
                    "map_seed",
                    default=1,
                    min=0,
                    max=(1 << 40) - 1,
                    control_after_generate=False,
                    tooltip="Which map the first frames show.",
                ),
                videos_at_once(),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="Where each frame stands; for BasicGuider."),
                io.Latent.Output(display_name="latent", tooltip="The given frames, and room for the others; for the sampler."),
            ],
        )

    @classmethod
    def execute(cls, camera: CameraPath, map_seed: int, batch_size: int = 1) -> io.NodeOutput:
        walk = plan_walk(camera.keys(), camera.frames, map_seed)
        pixels = DemoWorldConfig().picture_pixels
        video_bytes = 4 * (3 * batch_size + 1) * camera.frames * pixels**2
        require_room(video_bytes, f"{batch_size} video(s) of {camera.frames} frames", "a shorter camera path or a smaller batch")
        samples = torch.zeros(batch_size, 3, camera.frames, pixels, pixels)
        mask = torch.ones(1, 1, camera.frames, pixels, pixels)
        world = torch.from_numpy(paint(map_seed, JUDGED)).permute(2, 0, 1) * 2 - 1
        for frame, (row, col) in enumerate((walk.positions[:GIVEN_FRAMES] * STEP_PIXELS).tolist()):
            samples[:, :, frame] = world[:, row : row + pixels, col : col + pixels]
            mask[:, :, frame] = 0
        origins = [origin for block in walk.origins for origin in block]
        # The key that nodes/comfy/demo/sampler.py looks for; conditioning needs a tensor, and this model has no prompt.
        conditioning: list[Any] = [[torch.zeros(1, 1, 1), {"qvg_origins": origins}]]
        return io.NodeOutput(conditioning, {"samples": samples, "noise_mask": mask})


class QVGSampler(Node):
    """The autoregressive loop as a SAMPLER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QVGSampler",
            display_name="QVG Sampler",
            category=CATEGORY,
            description="Generates block after block, each with the memory of all before it. Connect it to SamplerCustomAdvanced."
            " An interrupt or a failure frees the memory and keeps the frames finished so far.",
            search_aliases=["qvg", "autoregressive sampler", "ar video"],
            inputs=[
                io.Boolean.Input(
                    "keep_finished",
                    default=True,
                    tooltip="After an interrupt or a failure, leave the finished frames as QVG/interrupted_*.latent in the "
                    "output folder.",
                    advanced=True,
                    optional=True,
                ),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, keep_finished: bool = True) -> io.NodeOutput:
        from .comfy.demo.sampler import make_sampler

        return io.NodeOutput(make_sampler(keep_finished))
