"""Who makes the videos: here, one after another, or one on each of several ComfyUI servers at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from ..errors import QVGError, ServerError, one_line
from .store import Store
from .work import Batch, Job, Outcome, perform


class Perform(Protocol):
    """See `work.perform`."""

    def __call__(self, work: Job, exact: bytes | None, server: str) -> Outcome:
        """Make one video."""


@dataclass
class Report:
    """What came of a run. `failed`: videos that could not be made and why; everything else is on the disk."""

    made: int = 0
    failed: list[tuple[Job, str]] = field(default_factory=list)


class Told(Protocol):
    """Who is told how it goes on."""

    def __call__(self, job: Job, failure: str = "") -> None:
        """One video more is there, or cannot be."""


def run_local(work: Sequence[Batch], store: Store, told: Told, servers: Sequence[str] = (), perform: Perform = perform) -> Report:
    """Make all of it. What fails is told and counted, and the rest goes on. Raises MediaError where results cannot be written,
    and ServerError where no server is left; both lose nothing that is finished."""
    report = Report()
    here = [batch for batch in work if batch.exact.target.kind != "comfyui"]
    there = [batch for batch in work if batch.exact.target.kind == "comfyui"]
    for batch in here:
        exact = _exact(batch, store, report, told, partial(perform, exact=None, server=""))
        for job in batch.others if exact is not None else ():
            _keep(job, store, report, told, partial(perform, exact=exact, server=""))
    if there:
        _Servers(servers, store, report, told, perform).run(there)
    return report


def _exact(batch: Batch, store: Store, report: Report, told: Told, make: Callable[[Job], Outcome]) -> bytes | None:
    """The exact video's pictures, made if they are not there; None where they cannot be."""
    job = batch.exact
    found = store.exact(job.key, job.version)
    if found is not None and store.has(job.key, job.version):
        return found
    return _keep(job, store, report, told, make, batch.others)


def _keep(
    job: Job,
    store: Store,
    report: Report,
    told: Told,
    make: Callable[[Job], Outcome],
    depend: Sequence[Job] = (),
) -> bytes | None:
    """Make one and keep it. -> what `Outcome.exact` is. One that fails takes those that `depend` on it along."""
    try:
        outcome = make(job)
    except ServerError:
        raise
    except (QVGError, ArithmeticError, RuntimeError, ValueError, MemoryError) as error:
        reason = one_line(error) or type(error).__name__
        failures = [(job, reason), *((other, f"its exact video could not be made: {reason}") for other in depend)]
        for each, why in failures:
            report.failed.append((each, why))
            told(each, why)
        return None
    keep(job, outcome, store, report, told)
    return outcome.exact


def keep(job: Job, outcome: Outcome, store: Store, report: Report, told: Told) -> None:
    """Write a result, once."""
    if store.put(job.key, job.version, outcome.row, outcome.video, outcome.exact):
        report.made += 1
    told(job)


class _Servers:
    """One video at a time on each server. One that dies gives its video to another."""

    def __init__(self, servers: Sequence[str], store: Store, report: Report, told: Told, perform: Perform):
        self._servers, self._store, self._report, self._perform = servers, store, report, perform
        self._lock, self._tell = threading.Lock(), told
        # A video, and those that wait for it where it is an exact one; None: no more come.
        self._waiting: queue.Queue[tuple[Job, tuple[Job, ...], bytes | None] | None] = queue.Queue()
        self._left, self._gone, self._stopped = 0, list[str](), list[BaseException]()

    def run(self, work: Sequence[Batch]) -> None:
        """All of it. ServerError where no server is left; KeyboardInterrupt ends the runs on the servers."""
        for batch in work:
            self._begin(batch)
        threads = [threading.Thread(target=self._serve, args=(server,), daemon=True) for server in self._servers]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(0.2)
        except KeyboardInterrupt:
            self._stopped.append(KeyboardInterrupt())
            raise
        if self._stopped:
            raise self._stopped[0]
        if self._left:
            raise ServerError(
                f"no server is left for {self._left} videos ({'; '.join(self._gone)}); finished rows are kept: start one, then "
                "`qvg study resume --server ...`"
            )

    def _begin(self, batch: Batch) -> None:
        exact = self._store.exact(batch.exact.key, batch.exact.version)
        self._left += len(batch.others)
        if exact is not None and self._store.has(batch.exact.key, batch.exact.version):
            for job in batch.others:
                self._waiting.put((job, (), exact))
        else:
            self._left += 1
            self._waiting.put((batch.exact, batch.others, None))

    def _serve(self, server: str) -> None:
        while not self._stopped and self._left:
            try:
                item = self._waiting.get(timeout=0.2)
            except queue.Empty:
                continue
            assert item is not None
            job, depend, exact = item
            try:
                outcome = self._perform(job, exact, server)
            except ServerError as error:
                with self._lock:
                    self._gone.append(one_line(error))
                self._waiting.put(item)
                return
            except Exception as error:
                self._fail(job, depend, error)
                continue
            self._keep(job, depend, outcome)

    def _fail(self, job: Job, depend: tuple[Job, ...], error: Exception) -> None:
        reason = one_line(error) or type(error).__name__
        with self._lock:
            for each, why in [(job, reason), *((other, f"its exact video could not be made: {reason}") for other in depend)]:
                self._report.failed.append((each, why))
                self._tell(each, why)
                self._left -= 1

    def _keep(self, job: Job, depend: tuple[Job, ...], outcome: Outcome) -> None:
        with self._lock:
            try:
                keep(job, outcome, self._store, self._report, self._tell)
            except QVGError as error:  # a full disk: for all of them
                self._stopped.append(error)
                return
            self._left -= 1
        for other in depend:
            self._waiting.put((other, (), outcome.exact))
