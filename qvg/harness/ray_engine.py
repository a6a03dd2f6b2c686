"""Many machines: every video is a task of Ray's with what it needs, tried again where its machine dies. Results come back here
and are written here, once; whatever dies, what is written stays, and a resumed run makes the rest."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, ServerError, one_line
from .defaults import RETRIES
from .engine import Report, Told, keep
from .store import Store
from .work import Batch, Job, Outcome, perform

# Tasks that wait on the cluster at once; more only fill the scheduler's memory.
MOST_WAITING = 256
MISSING = "--engine ray needs Ray, which is not installed here; `pip install ray`, or use --engine local"


@dataclass(frozen=True)
class _Waiting:
    """What a task is for: its job, and the jobs that wait for it where it makes an exact video."""

    job: Job
    depend: tuple[Job, ...] = ()
    exact: Any = None
    server: str = ""


def start(address: str | None) -> Any:
    """Ray, joined to a cluster, or begun on this machine. ConfigError where it is not installed or nobody answers."""
    try:
        import ray
    except ImportError:
        raise ConfigError(MISSING) from None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # tasks without a GPU keep what the machine says
    if not ray.is_initialized():
        try:
            _reach(address)
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="error")
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"no cluster answers at {address} ({one_line(error)[:200]}); start one, see docs/cluster.md"
            ) from None
    return ray


def _reach(address: str | None) -> None:
    """OSError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def run_ray(
    work: Sequence[Batch],
    store: Store,
    told: Told,
    servers: Sequence[str] = (),
    address: str | None = None,
    retries: int = RETRIES,
    perform: Any = perform,
) -> Report:
    """Make all of it on a cluster. See `engine.run_local`."""
    ray = start(address)
    return _Cluster(ray, store, told, servers, retries, perform).run(work)


class _Cluster:
    """The driver: which tasks wait, which run, what has come."""

    def __init__(self, ray: Any, store: Store, told: Told, servers: Sequence[str], retries: int, perform: Any):
        self._ray, self._store, self._told, self._free = ray, store, told, list(servers)
        self._report, self._running = Report(), dict[Any, _Waiting]()
        # (job, those that wait for it, the exact pictures in Ray's store)
        self._queue: list[tuple[Job, tuple[Job, ...], Any]] = []
        gpus = ray.cluster_resources().get("GPU", 0)
        here = {"num_cpus": 1, "num_gpus": 1 if gpus else 0}
        options = {"max_retries": retries, "retry_exceptions": False}
        self._here = ray.remote(**here, **options)(perform)
        self._there = ray.remote(num_cpus=0.01, **options)(perform)
        self._servers = len(self._free)

    def run(self, work: Sequence[Batch]) -> Report:
        """Until nothing is left."""
        for batch in work:
            exact = self._store.exact(batch.exact.key, batch.exact.version)
            if exact is not None and self._store.has(batch.exact.key, batch.exact.version):
                kept = self._ray.put(exact)
                self._queue += [(job, (), kept) for job in batch.others]
            else:
                self._queue.append((batch.exact, batch.others, None))
        while self._queue or self._running:
            self._submit()
            if not self._running:
                raise ServerError(
                    f"{len(self._queue)} videos need a ComfyUI server and none is left; finished rows are kept: name one with "
                    "--server and resume"
                )
            finished, _ = self._ray.wait(list(self._running), num_returns=1)
            for reference in finished:
                self._take(reference)
        return self._report

    def _submit(self) -> None:
        """Hand over what there is room for, videos of a server only as many as servers are free."""
        later = []
        for item in self._queue:
            job, depend, exact = item
            server = ""
            if len(self._running) >= MOST_WAITING:
                later.append(item)
                continue
            if job.target.kind == "comfyui":
                if not self._free:
                    later.append(item)
                    continue
                server = self._free.pop()
            remote = self._there if server else self._here
            self._running[remote.remote(job, exact, server)] = _Waiting(job, depend, exact, server)
        self._queue = later

    def _take(self, reference: Any) -> None:
        waiting = self._running.pop(reference)
        try:
            outcome: Outcome | None = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            if waiting.server and isinstance(getattr(error, "cause", None), ServerError):
                self._queue.append((waiting.job, waiting.depend, waiting.exact))  # for another server; this one is gone
                return
            self._fail(waiting, error)
            outcome = None
        if waiting.server:
            self._free.append(waiting.server)
        if outcome is None:
            return
        keep(waiting.job, outcome, self._store, self._report, self._told)
        if waiting.depend:
            exact = self._ray.put(outcome.exact)
            self._queue += [(job, (), exact) for job in waiting.depend]

    def _fail(self, waiting: _Waiting, error: Exception) -> None:
        """An error of ours is told as it is; a machine that died more often than it is tried again, by Ray's words."""
        cause = getattr(error, "cause", None) or error
        reason = one_line(str(cause).splitlines()[-1] if str(cause) else type(cause).__name__)[:400]
        for job, why in [
            (waiting.job, reason),
            *((each, f"its exact video could not be made: {reason}") for each in waiting.depend),
        ]:
            self._report.failed.append((job, why))
            self._told(job, why)
