"""Pictures and video files."""

from .video import FULL_DISK, Picture, VideoWriter, side_by_side

__all__ = ["FULL_DISK", "Picture", "VideoWriter", "side_by_side"]
