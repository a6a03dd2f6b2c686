"""Which variant a file is, and what told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .variants import CausalVariant

AUTO = "auto"
# In the metadata of a file that we wrote: the variant's name, and what makes its settings doubtful, as the original's name did.
METADATA_KEY = "qvg_variant"
DOUBT_KEY = "qvg_doubt"


@dataclass(frozen=True)
class Found:
    """`variant` is None for a file that is causal without saying which member it is; `how` completes "known by ...". `doubt`: a
    sentence, where the name says more than that it is this variant, so that it may have been trained to be run otherwise."""

    variant: CausalVariant | None
    how: str
    doubt: str = ""


@dataclass(frozen=True)
class Members:
    """Variants that share a network, by name; `names`: a pattern over a file's name without separators, and the variant that a
    file of such a name is, most telling first."""

    variants: Mapping[str, CausalVariant]
    names: tuple[tuple[str, str], ...] = ()
