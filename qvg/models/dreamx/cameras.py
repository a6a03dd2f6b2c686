"""DreamX-World's cameras: how far its keys lead, and what its attention is told of a block's frames."""

from __future__ import annotations

import torch

from ...camera.cameras import Cameras
from ...camera.poses import Steps
from ...positions.projective import Projector, projection_matrices

# Per picture: 1.5 times 0.05, and 1.5 degrees.
STEPS = Steps(move=0.075, turn=1.5)


def block_cameras(cameras: Cameras, first: int, frames: int, tokens_per_frame: int) -> Projector:
    """Of the frames of a block. Its attention sees no others, so it is the same from wherever the world is looked at: from the
    block's first camera, which keeps numbers small."""
    own = Cameras(cameras.poses[first : first + frames], cameras.intrinsics[first : first + frames]).recentred(0)
    views, focal = torch.from_numpy(own.views()), torch.from_numpy(own.normalised_intrinsics())
    to_picture, to_world = projection_matrices(views, focal)
    return Projector(to_picture.float(), to_world.float(), tokens_per_frame)
