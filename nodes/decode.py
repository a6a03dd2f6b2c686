"""From LATENT to a video file, with memory that does not grow with the video's length."""

from __future__ import annotations

from typing import Any

from .api import CATEGORY, InputImpl, io, ui
from .widgets import Node, number


class QVGSaveVideo(Node):
    """VAE Decode, Create Video and Save Video in one, piece by piece."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QVGSaveVideo",
            display_name="Decode and Save Video",
            category=CATEGORY,
            description="Decodes a video latent piece by piece and writes each piece into an mp4 file at once, so that memory "
            "does not grow with the length of the video. The pictures are those of VAE Decode.",
            search_aliases=["qvg", "vae decode", "save video", "long video", "streaming decode"],
            inputs=[
                # Lazy: sampling begins when the name is known to be one that the disk takes.
                io.Latent.Input(
                    "samples", tooltip="The sampled video. Each video of a batch becomes a file of its own.", lazy=True
                ),
                io.Vae.Input(
                    "vae",
                    lazy=True,
                    tooltip="The VAE that belongs to the model. Wan 2.1 and Wan 2.2 are decoded in a stream; other video VAEs "
                    "all frames at once, as VAE Decode does it.",
                ),
                io.Float.Input(
                    "fps", default=16.0, tooltip="Pictures per second. Wan 2.1 is made for 16.", **number(1.0, 120.0, 0.01)
                ),
                io.String.Input(
                    "filename_prefix",
                    default="QVG/video",
                    tooltip="Folder and beginning of the name, in the output folder. Takes %date:yyyy-MM-dd%, %Node.input%, "
                    "%width% and such, as Save Video does.",
                ),
                io.Int.Input(
                    "crf",
                    default=16,
                    min=1,
                    max=51,
                    tooltip="Quality of H.264: lower is better and larger. 16 shows no loss; 6 more take about half the space.",
                    advanced=True,
                    optional=True,
                ),
                io.Float.Input(
                    "match_colours",
                    default=0.0,
                    tooltip="How much each picture takes on the colours of the last one of the block of 3 latent frames "
                    "before, 0 to "
                    "1, as DreamX-World's program does it: colours drift no more, but real changes of light are lost, too. 0 "
                    "leaves pictures as they are; leave it there to compare.",
                    **number(0.0, 1.0, 0.05),
                    advanced=True,
                    optional=True,
                ),
            ],
            outputs=[
                io.Video.Output(
                    display_name="video",
                    tooltip="The file as a video, for Get Video Components or Save Video; one for each of the batch.",
                    is_output_list=True,
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: Any = None) -> bool | str:
        from .comfy.output_names import VIDEO, complaint

        return not isinstance(filename_prefix, str) or complaint(filename_prefix, VIDEO) or True

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """And whether the disk takes the name, with all its placeholders, or where it comes over a link."""
        from .comfy.output_names import VIDEO, output_prefix

        waiting, hidden = super().check_lazy_status(**inputs), cls.hidden
        output_prefix(inputs["filename_prefix"], VIDEO, hidden.prompt, (hidden.extra_pnginfo or {}).get("workflow"))
        return waiting

    @classmethod
    def execute(
        cls,
        samples: dict[str, Any],
        vae: Any,
        fps: float,
        filename_prefix: str,
        crf: int = 16,
        match_colours: float = 0.0,
    ) -> io.NodeOutput:
        from .comfy.save_video import save_videos

        hidden = cls.hidden
        given = (vae, samples["samples"], fps, crf, filename_prefix, hidden.prompt, hidden.extra_pnginfo)
        saved = save_videos(*given, match_colours=match_colours)
        shown = [ui.SavedResult(video.path.name, video.subfolder, io.FolderType.output) for video in saved]
        return io.NodeOutput([InputImpl.VideoFromFile(str(video.path)) for video in saved], ui=ui.PreviewVideo(shown))
