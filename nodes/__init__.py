"""The ComfyUI nodes: thin, one file per job. Ids and the order of widgets are for ever, workflows store them: append only, and
what is appended is optional: programs that were written before it do not send it. An option of a DynamicCombo never gets another
widget, as the page stores values by position and those of the option come in between: a new option gets it instead.
"""

from __future__ import annotations

from .api import ComfyExtension
from .cache import QVGKVCache
from .camera import QVGCameraPath, QVGCameraPoses
from .camera_start import QVGCameraVideoStart
from .camera_worlds import QVGLoadCameraWorld
from .causal import QVGCausalSampler, QVGVideoStart
from .causal_loaders import QVGLoadCausalWan, QVGTrainedSigmas
from .comfy.copies import counts
from .compare import QVGCompare
from .decode import QVGSaveVideo
from .film import QVGFilmPrompt, QVGFilmStart, QVGLoadDemoFilm
from .loaders import QVGLoadDemoWorld
from .longcat import QVGLoadLongCat, QVGLongCatSampler, QVGLongCatStart
from .plan import QVGPlan
from .prompts import QVGPromptAtFrame
from .report import QVGCacheReport
from .sampling import QVGDemoWorldStart, QVGSampler
from .widgets import Node
from .world import QVGLoadWorldPlay, QVGWorldSampler, QVGWorldStart

NODES: list[type[Node]] = [
    QVGLoadDemoWorld,
    QVGKVCache,
    QVGCameraPath,
    QVGDemoWorldStart,
    QVGSampler,
    QVGCacheReport,
    QVGCompare,
    QVGLoadCausalWan,
    QVGTrainedSigmas,
    QVGSaveVideo,
    QVGVideoStart,
    QVGPromptAtFrame,
    QVGCausalSampler,
    QVGPlan,
    QVGCameraPoses,
    QVGLoadWorldPlay,
    QVGWorldStart,
    QVGWorldSampler,
    QVGLoadDemoFilm,
    QVGFilmPrompt,
    QVGFilmStart,
    QVGLoadLongCat,
    QVGLongCatStart,
    QVGLongCatSampler,
    QVGLoadCameraWorld,
    QVGCameraVideoStart,
]


class QVGExtension(ComfyExtension):
    """What ComfyUI loads."""

    async def on_load(self) -> None:
        """Once, when ComfyUI starts: what a run left that was killed becomes a latent."""
        from .comfy.keep import rescue_killed_runs

        rescue_killed_runs()

    async def get_node_list(self) -> list[type[Node]]:
        """All nodes; none where another copy of this pack counts."""
        return list(NODES) if counts() else []
