"""Which variant a file is, and what told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .variants import CausalVariant

AUTO = "auto"
# In the metadata of a file that we wrote: the variant's name.
METADATA_KEY = "qvg_variant"


@dataclass(frozen=True)
class Found:
    """`variant` is None for a file that is causal without saying which member it is; `how` completes "known by ..."."""

    variant: CausalVariant | None
    how: str


@dataclass(frozen=True)
class Members:
    """Variants that share a network, by name; `names`: a pattern over a file's name without separators, and the variant that a
    file of such a name is, most telling first."""

    variants: Mapping[str, CausalVariant]
    names: tuple[tuple[str, str], ...] = ()
