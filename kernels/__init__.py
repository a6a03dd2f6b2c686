"""The arithmetic of the codec, each op with a torch reference (the truth) and, where one exists, a Triton kernel.

| op | does |
|---|---|
| `assign_clusters` | nearest centroid of every token |
| `update_centroids` | mean of every cluster |
| `subtract_centroids` | what a clustering leaves over |
| `quantize_groups` | subtract centroids, scale, round, pack |
| `reconstruct` | unpack, scale, add centroids |
| `quantize_coefficients` | Lloyd-Max levels of unequal width, one unbiased gain per token, pack |
| `reconstruct_coefficients` | unpack, look levels up, multiply by the basis, add codewords |

Shapes: B batch, H heads, S tokens, D head_dim, C centroids, G groups (D / group size), N stages. The memory format these ops
read and write is described in `packing.py`, `bitplanes.py`, `e4m3.py` and `rows8.py`; it is the same on every device and in
files.
"""

from .coefficients import Coefficients, quantize_coefficients, reconstruct_coefficients
from .dispatch import BACKENDS, explain, require_backend
from .kmeans import assign_clusters, subtract_centroids, update_centroids
from .reconstruct import reconstruct
from .residual import QuantizedGroups, quantize_groups
from .rows8 import Rows8, quantize_rows

__all__ = [
    "BACKENDS",
    "Coefficients",
    "QuantizedGroups",
    "Rows8",
    "assign_clusters",
    "explain",
    "quantize_coefficients",
    "quantize_groups",
    "quantize_rows",
    "reconstruct",
    "reconstruct_coefficients",
    "require_backend",
    "subtract_centroids",
    "update_centroids",
]
