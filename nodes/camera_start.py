"""What a walk through a world starts from that is made block after block by QVG Causal Sampler."""

from __future__ import annotations

from typing import Any

from ..qvg.errors import ConfigError
from ..qvg.models.registry import joined, loaders
from .api import CATEGORY, Camera, io
from .camera import AnyCamera
from .pictures import first_picture
from .widgets import Node, whole

_TOKEN_PIXELS = 16  # of the smallest token's side; the model may want twice as many


def _loaders() -> str:
    """Nodes whose models are told of cameras in this way."""
    return joined(loaders(lambda family: any(variant.cameras for variant in family.variants.values())), "or")


class QVGCameraVideoStart(Node):
    """Prompt, camera and first picture to conditioning and the latent that sampling starts from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        size = whole(64, 4096, _TOKEN_PIXELS)
        later = {"optional": True, "lazy": True}
        return io.Schema(
            node_id="QVGCameraVideoStart",
            display_name="Camera Video Start",
            category=CATEGORY,
            description=f"What a walk through a world of {_loaders()} starts from: a prompt, a camera and a picture, or a "
            "video to "
            "go on from. Keys lead as far as the model was trained with. For SamplerCustomAdvanced with QVG Causal Sampler.",
            search_aliases=["qvg", "dreamx", "image to world", "camera", "empty latent"],
            inputs=[
                io.Model.Input("model", lazy=True, tooltip=f"From {_loaders()}; cache and LoRA nodes may be in between."),
                io.Conditioning.Input(
                    "conditioning", lazy=True, tooltip="What there is to see: the prompt, from CLIP Text Encode."
                ),
                Camera.Input("camera", tooltip="From QVG Camera Path or QVG Camera Poses, as many latent frames as the video."),
                io.Int.Input("width", default=1280, tooltip="Of the video, in pixels. DreamX-World is trained at 1280.", **size),
                io.Int.Input("height", default=704, tooltip="Of the video, in pixels. DreamX-World is trained at 704.", **size),
                io.Vae.Input("vae", tooltip="For the picture: the model's own VAE, Wan 2.2's for DreamX-World.", **later),
                io.Image.Input("image", tooltip="The first picture, scaled and cut to the video's size.", **later),
                io.Latent.Input(
                    "extend",
                    tooltip="A sampled video of whole blocks to go on from; the camera walks all of it, from the first frame on.",
                    **later,
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="Prompt and cameras; for BasicGuider."),
                io.Latent.Output(
                    display_name="latent", tooltip="Given frames, and room for the others; for SamplerCustomAdvanced."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        conditioning: Any,
        camera: AnyCamera,
        width: int,
        height: int,
        vae: Any = None,
        image: Any = None,
        extend: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        if image is not None and extend is not None:
            raise ConfigError(
                "a picture and a video to extend are both connected, but a video begins with one of them; take one out"
            )
        if image is not None and vae is None:
            raise ConfigError("a picture needs the VAE that makes a latent of it; connect the model's own VAE")
        from .comfy.causal.camera_start import start
        from .comfy.progress import say_what_is_left_out

        picture, left_out = (None, []) if image is None else first_picture("image", image, (width, height))
        conditioned, latent, said = start(model, conditioning, camera, (width, height), vae, picture, extend)
        say_what_is_left_out(said, left_out)
        return io.NodeOutput(conditioned, latent)
