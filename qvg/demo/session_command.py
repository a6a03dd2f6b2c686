"""`qvg demo --session`, `qvg resume` and `qvg sessions`."""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, SessionError, SessionInUseError, one_line
from ..server.interrupt import interrupted_by
from ..session import Session
from ..session.manifest import MANIFEST
from ..session.session import DEFAULT_EVERY

_MOST_BRANCHES = 1000


def add_sessions(commands: Any) -> None:
    """`qvg resume` and `qvg sessions`, among the other commands."""
    command = commands.add_parser(
        "resume",
        help="go on with a session that `qvg demo --session` began",
        description="Make what a session's plan says and is not there yet, bit for bit as if it had never been left; or more of "
        "it, or go another way from where it stands. Writes video.mp4 and last.png into the session's folder. A session that "
        "another run writes to is branched off: its newest checkpoint goes on in a folder beside it.",
    )
    command.add_argument("folder", type=Path, metavar="DIR", help="the session's folder")
    command.add_argument("--frames", type=int, metavar="N", help="latent frames more; default: what is planned, or as many again")
    command.add_argument("--path", metavar="STR", help="camera path from here on, such as a-10,w-5; a film has none")
    command.add_argument("--branch", type=Path, metavar="DIR", help="leave the session as it is, and go on in this new folder")
    command.set_defaults(run=_resume)
    command = commands.add_parser(
        "sessions",
        help="which sessions there are: model, frames, bytes, last picture",
        description="List the sessions in a folder. They are deleted by whoever made them, as folders are.",
    )
    command.add_argument("folder", type=Path, nargs="?", default=Path(), metavar="DIR", help="default: this folder")
    command.add_argument("--verify", action="store_true", help="read every byte and compare it with its checksum")
    command.add_argument("--prune", action="store_true", help="remove what ended runs left that belongs to no checkpoint")
    command.set_defaults(run=_sessions)


def add_session_option(command: argparse.ArgumentParser) -> None:
    """`--session` of `qvg demo`."""
    command.add_argument(
        "--session",
        type=Path,
        metavar="DIR",
        help="in place of --out: one run with the default memory, which is saved in this new folder while it is made; "
        "`qvg resume DIR` goes on with it, whatever ended it",
    )


def require_place(options: argparse.Namespace) -> None:
    """ConfigError unless something says where the results go."""
    if options.out is None and options.session is None:
        raise ConfigError("nothing says where the results are to go; give --out DIR, or --session DIR for a run that is kept")


def begin_session(options: argparse.Namespace, defaults: dict[str, Any]) -> int:
    """`qvg demo --session DIR`."""
    from .saved_runs import begin, make

    if options.out is not None:
        raise ConfigError("--out is for the comparison of four memories, --session for one run that is kept; use one of them")
    chosen = {name: getattr(options, name) for name in defaults if getattr(options, name) is not None}
    asked = {**defaults, **chosen}
    _one_thread()
    with interrupted_by(signal.SIGINT, signal.SIGTERM):
        session = begin(options.session, options.film, asked["frames"], asked["seed"], asked.get("path"), DEFAULT_EVERY)
        return make(session, session.manifest.plan)


def _resume(options: argparse.Namespace) -> int:
    from .saved_runs import changed, make

    _one_thread()
    with interrupted_by(signal.SIGINT, signal.SIGTERM):
        session = _opened(options.folder, options.branch)
        try:
            plan = changed(session, options.frames, options.path)
        except BaseException:
            session.close()
            raise
        return make(session, plan)


def _opened(folder: Path, branch: Path | None) -> Session:
    if branch is not None:
        return Session.branch(folder, branch)
    try:
        return Session.open(folder)
    except SessionInUseError:
        whole = folder.resolve()
        names = (whole.with_name(f"{whole.name}-{number}") for number in range(2, _MOST_BRANCHES))
        beside = next(itertools.dropwhile(Path.exists, names))
        print(f"another run writes to {one_line(folder)}; its newest checkpoint goes on in {one_line(beside)}")
        return Session.branch(folder, beside)


def _one_thread() -> None:
    import os

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # as `qvg demo`; and one number of threads gives one result


def _sessions(options: argparse.Namespace) -> int:
    folder, failed = options.folder, False
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; name one that sessions are in")
    found = [folder] if (folder / MANIFEST).exists() else sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    for each in found:
        try:
            print(one_line(_line(each, options.verify, options.prune)))
        except (SessionError, OSError) as error:
            failed = True
            print(f"error: {one_line(error)}", file=sys.stderr)
    if not found:
        print(f"no sessions in {one_line(folder)}")
    return int(failed)


def _line(folder: Path, verify: bool, prune: bool) -> str:
    """A session in one line."""
    session = Session.look(folder)
    manifest, said = session.manifest, []
    if verify:
        session.verify()
        said.append("every byte is as it was written")
    if prune:
        said.append(_pruned(folder))
    parent = manifest.parent
    if parent is not None:
        said.append(f"branched off {parent.get('name')} behind block {parent.get('blocks')}")
    with suppress(OSError):
        last = next(iter(sorted(folder.glob("last.*"))), None)
        said += [f"last picture {last}"] if last else []
    facts = f"{manifest.model}, {manifest.frames} frames in {manifest.blocks} blocks, {session.index.nbytes / 1e6:.2f} MB"
    return "; ".join([f"{folder}: {facts}", *said])


def _pruned(folder: Path) -> str:
    try:
        with Session.open(folder) as session:
            return f"{session.removed} files that belonged to no checkpoint are removed"
    except SessionInUseError:
        return "a run writes to it, so nothing was removed"
