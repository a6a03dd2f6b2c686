"""What a page's gauge shows while a run goes on: an event after every block.

`web/qvg.js` draws it on the node that runs. A program that listens to the server's socket gets the same, under the name EVENT.
"""

from __future__ import annotations

from collections import deque
from typing import Any

EVENT = "qvg.gauge"
_BLOCKS_AHEAD = 5  # the newest blocks tell how long the next will take


class Gauge:
    """Of one run of so many blocks."""

    def __init__(self, blocks: int):
        self._blocks, self._seconds = blocks, deque[float](maxlen=_BLOCKS_AHEAD)
        self._all_seconds, self._all_frames = 0.0, 0

    def finished(self, index: int, frames: int, seconds: float, cache_bytes: int, exact_bytes: int) -> None:
        """Block `index` has become history. `exact_bytes`: what the cache would be at 16 bits per value now."""
        self._seconds.append(seconds)
        self._all_seconds, self._all_frames = self._all_seconds + seconds, self._all_frames + frames
        # What one frame takes now; of a run that is over, what one took.
        over = index + 1 == self._blocks
        _send(
            {
                "block": index + 1,
                "blocks": self._blocks,
                "cache_bytes": cache_bytes,
                "exact_bytes": exact_bytes,
                "seconds_per_frame": round(self._all_seconds / self._all_frames if over else seconds / frames, 3),
                "seconds": round(self._all_seconds, 1),
                "seconds_left": round(sum(self._seconds) / len(self._seconds) * (self._blocks - index - 1), 1),
            }
        )


def _send(data: dict[str, Any]) -> None:
    """To whoever queued the run; a ComfyUI without a server, or of another make, shows no gauge."""
    try:
        from comfy_execution.utils import get_executing_context
        from server import PromptServer

        context, server = get_executing_context(), PromptServer.instance
        send, client = server.send_sync, server.client_id
    except (ImportError, AttributeError):
        return
    if context is not None:
        send(EVENT, {"node": context.node_id, "prompt_id": context.prompt_id, **data}, client)
