"""`qvg study`: run a plan, go on with it, make its page."""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError, one_line, quoted
from ..server.interrupt import interrupted_by
from .defaults import RETRIES
from .engine import Report, run_local
from .plan import StudyPlan, load_plan
from .ray_engine import run_ray
from .store import Store
from .walks import Walks
from .work import Batch, Job, batches, check, counted, job, perform

ENGINES = ("local", "ray")
# One core of an ordinary computer, exact to a factor of two: said before anything of a plan is measured.
SECONDS_PER_FRAME = {"world": 0.12, "film": 0.2}
_SHOWN_FAILURES = 20


def run(options: argparse.Namespace) -> int:
    """Make the videos of a plan that are not there. -> exit code"""
    store, shard = Store(options.out), _shard(options.shard)
    if options.engine not in ENGINES:
        raise ConfigError(f"engine is {quoted(options.engine)}, but must be {' or '.join(ENGINES)}; leave it out for local")
    if options.walks and options.engine == "ray":
        raise ConfigError("walks are taken over on this machine, but engine is ray; take them over first, then resume with ray")
    if not 0 <= options.retries <= 1000:
        raise ConfigError(f"retries is {options.retries}, but must be from 0 to 1000; leave it out for {RETRIES}")
    plan = store.plan() if options.plan is None else load_plan(options.plan)
    _check_servers(plan, options.servers)
    check(plan)
    store.prepare(plan)
    work = batches(plan, store, shard)
    missing = counted(work, store)
    print(f"{described(plan)}; {missing} of them to make{_about(missing, work, store)}")
    if _other_versions(plan, store):
        print(f"{_other_versions(plan, store)} rows of another version lie there; they stay, and are not mixed with these")
    walks = Walks(options.walks) if options.walks else None
    with interrupted_by(signal.SIGINT, signal.SIGTERM):
        report = _engine(options, work, store, _Progress(missing), walks)
    return _said(report, options.out)


def _engine(options: argparse.Namespace, work: Sequence[Batch], store: Store, told: _Progress, walks: Walks | None) -> Report:
    if options.engine == "ray":
        return run_ray(work, store, told, options.servers, options.address, options.retries)
    return run_local(work, store, told, options.servers, walks.perform if walks else perform)


def _check_servers(plan: StudyPlan, servers: Sequence[str]) -> None:
    wanting = [target.name for target in plan.targets if target.kind == "comfyui"]
    if wanting and not servers:
        raise ConfigError(f"target {quoted(wanting[0])} is a workflow, but no server was named; add --server HOST:PORT")


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count) <= 10_000):
        raise ConfigError(f"shard is {quoted(text)}, but must be I/N with I from 1 to N, such as 1/4; leave it out for all")
    return int(index), int(count)


class _Progress:
    """A line for every video, with how long the rest will take."""

    def __init__(self, total: int):
        self._total, self._done, self._started = total, 0, time.monotonic()

    def __call__(self, job: Job, failure: str = "") -> None:
        self._done += 1
        rest = (time.monotonic() - self._started) / self._done * max(0, self._total - self._done)
        what = f"FAILED, {failure}" if failure else "done"
        print(one_line(f"{self._done}/{self._total}  {job.name}: {what}; about {_span(rest)} left"), flush=True)


def _said(report: Report, out: Path) -> int:
    print(f"made {report.made} videos; rows are in {one_line(out)}, and `qvg study page --out {one_line(out)}` shows them")
    if report.failed:
        for job, why in report.failed[:_SHOWN_FAILURES]:
            print(one_line(f"error: {job.name}: {why}"), file=sys.stderr)
        print(
            f"{len(report.failed)} videos could not be made; `qvg study resume --out {one_line(out)}` tries them again",
            file=sys.stderr,
        )
    return 1 if report.failed else 0


def described(plan: StudyPlan) -> str:
    """A plan's size in words."""
    parts = Counter(case.target for case, _ in plan.cases())
    each = ", ".join(f"{name}: {count} cases x {len(plan.target(name).methods)} methods" for name, count in parts.items())
    return f"plan {plan.name}: {plan.videos()} videos ({each})"


def _other_versions(plan: StudyPlan, store: Store) -> int:
    keys = {(each.key, each.version) for case, methods in plan.cases() for each in (job(plan, case, name) for name in methods)}
    return sum(store.others(*pair) for pair in keys)


def _about(missing: int, work: Sequence[Batch], store: Store) -> str:
    """How long, where that is known at all."""
    seconds = expected_seconds(work, store)
    return "" if not missing or seconds is None else f", about {_span(seconds)} on one core"


def expected_seconds(work: Sequence[Batch], store: Store) -> float | None:
    """By the rows that are there of each kind of target, else by what an ordinary core takes; None for what nobody knows."""
    total, known = 0.0, dict[str, float | None]()
    for batch in work:
        kind = batch.exact.target.kind
        if kind not in known:
            known[kind] = _measured(kind, store) or SECONDS_PER_FRAME.get(kind)
        rate = known[kind]
        if rate is None:
            return None
        jobs = [*batch.others, *([] if store.has(batch.exact.key, batch.exact.version) else [batch.exact])]
        total += rate * sum(job.case.frames for job in jobs)
    return total


def _measured(kind: str, store: Store) -> float | None:
    found = []
    for path in sorted((store.folder / "rows").glob("*.json"))[:200]:
        row = store.row(*path.stem.split("-")) if path.stem.count("-") == 1 else None
        if row and row["target"]["kind"] == kind:
            seconds = row["seconds"]
            found.append(sum(seconds.get(name, 0.0) for name in ("denoise", "encode", "decode")) / row["case"]["frames"])
    return statistics.mean(found) if found else None


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(options: argparse.Namespace) -> int:
    """Say how many videos a plan has; makes none. -> exit code"""
    plan, nowhere = load_plan(options.plan), Store(Path("/nonexistent"))
    work = batches(plan, nowhere)
    print(f"{described(plan)}; {counted(work, nowhere)} differ{_about(1, work, nowhere)}")
    for target in plan.targets:
        print(f"  {target.name}: lengths {list(target.frames)}, {len(target.prompts)} prompts, seeds {list(target.seeds)}")
    return 0


def page(options: argparse.Namespace) -> int:
    """Write the page of what is there. -> exit code"""
    from .page import TABLE, write_page

    if not 0 <= options.video_mb <= 2000:
        raise ConfigError(f"video-mb is {options.video_mb:g}, but must be from 0 to 2000; leave it out for 40")
    store = Store(options.out)
    path = options.out / "page.html"
    write_page(store, store.plan(), path, options.published, round(options.video_mb * 1e6))
    print(f"wrote {one_line(path)} and {TABLE} beside it")
    return 0
