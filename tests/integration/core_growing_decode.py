"""Run by ComfyUI's Python: a video decoded block by block, as memory recompute does, and by one call of its VAE.

python core_growing_decode.py COMFYUI VAE OUT.safetensors     pictures [B, n, H, W, C] by "core." and "ours.", and the cut
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

HOME, FILE, OUT = (Path(path) for path in sys.argv[1:4])
del sys.argv[1:]
sys.path[:0] = [str(HOME), str(Path(__file__).resolve().parents[2] / "tools")]

from comfy.cli_args import args  # noqa: E402

args.cpu = True
import bootstrap_package  # noqa: E402, F401 (makes the repository importable as comfyui_qvg)
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfyui_qvg.nodes.comfy.decode import GrowingDecode  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

# Where the video is cut into blocks: from nothing, and behind a start image.
CUTS = ((0, 3, 6, 10), (0, 1, 4, 7, 10))


@torch.no_grad()
def main() -> None:
    """See the module docstring."""
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(FILE)))
    latent = torch.randn(2, 16, 10, 8, 12, generator=torch.Generator().manual_seed(0))
    pictures = {"core": torch.stack([vae.decode(each[None]).flatten(0, -4) for each in latent])}
    for number, cuts in enumerate(CUTS):
        growing = GrowingDecode(vae)
        pictures[f"ours.{number}"] = torch.cat([growing.add(latent[:, :, a:b]) for a, b in pairwise(cuts)], 1)
    save_file({name: each.contiguous() for name, each in pictures.items()}, OUT)


main()
