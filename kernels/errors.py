"""The one error that kernels raise for a user's choice; wrong shapes from our own code raise ValueError."""

from __future__ import annotations


class BackendError(RuntimeError):
    """A backend was forced that cannot run here. Holds `op`, `backend` and `reason`."""

    def __init__(self, op: str, backend: str, reason: str):
        super().__init__(f"backend {backend!r} was forced for {op}, but {reason}; use backend 'auto' or 'torch'")
        self.op, self.backend, self.reason = op, backend, reason
