"""What every kind of network that has a KV cache offers the nodes. A `Family` names the module that holds its `ADAPTER`."""

from __future__ import annotations

from typing import Any, Protocol

from ...qvg import QVGConfig
from ...qvg.models.common.checkpoint import CausalCheckpoint
from ...qvg.models.common.shape import NetworkShape


class Loader(Protocol):
    """Files of a family into a MODEL. A module may be one."""

    def check(self, checkpoint: CausalCheckpoint) -> None:
        """Raise UnsupportedModelError for what this ComfyUI, or the sampler, cannot run."""

    def text(self, checkpoint: CausalCheckpoint) -> str:
        """What it is and how it is run, in lines for the node."""

    def patcher(self, checkpoint: CausalCheckpoint, options: dict[str, Any], **more: Any) -> Any:
        """The bare MODEL. Raises UnsupportedModelError where ComfyUI makes something else of it."""

    def dress(self, model: Any) -> None:
        """Put on the MODEL what its sampler and its cache need."""


class Adapter(Protocol):
    """One kind of network inside ComfyUI. Importing it needs no ComfyUI; what needs one is imported when it is called."""

    def matches(self, base_model: Any) -> bool:
        """Whether this `BaseModel` is of this kind."""

    def near(self, base_model: Any) -> str:
        """Of a model that has no cache: what to do if its file is of this family, which ComfyUI's own loader does not know; ""
        for models that no such file becomes."""

    def report_name(self, base_model: Any) -> str:
        """What reports call it."""

    def require_counted(self, model: Any) -> None:
        """Raise ConfigError where this MODEL's cache is not ours."""

    def check_config(self, base_model: Any, config: QVGConfig) -> None:
        """Raise ConfigError for settings that do not fit it."""

    def keeps_padding(self, base_model: Any, config: QVGConfig) -> str:
        """Why merge_padding has no effect; "" where it has."""

    def attach(self, clone: Any) -> None:
        """Have a clone that nobody else has yet keep its cache as its settings say."""

    def shape(self, model: Any) -> NetworkShape:
        """For a plan."""

    def sampled_by(self, base_model: Any, sampler: str) -> str:
        """ "" where the node `sampler` samples it; else which one does, as a sentence."""

    def loader(self) -> Loader:
        """Of its files."""


def is_wan(base_model: Any, channels: int) -> bool:
    """Whether this is core's Wan network, of so many latent channels and no others that it is given, such as a picture's."""
    embedding = getattr(getattr(base_model, "diffusion_model", None), "patch_embedding", None)
    latent = getattr(getattr(base_model, "latent_format", None), "latent_channels", None)
    return latent == channels == getattr(embedding, "in_channels", None)
