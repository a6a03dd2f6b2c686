"""Arguments of `qvg study`; what runs it is imported when it runs, for it needs packages that other commands do not."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .defaults import BUILT_IN, RETRIES


def add_study(commands: Any) -> None:
    """The command's arguments."""
    command = commands.add_parser(
        "study",
        help="compare methods by a plan, on this machine, ComfyUI servers or a cluster, and make a page to decide from",
        description="A plan says targets, methods, prompts, seeds and lengths. Every video of it is made once; a run that is "
        "broken off, by whatever, goes on. The page is one file that needs no server and no network.",
    )
    topics = command.add_subparsers(title="topics", required=True, metavar="TOPIC")
    run = topics.add_parser("run", help="make what a plan asks for", description="Make every video that is not there yet.")
    run.add_argument("plan", metavar="PLAN", help=f"a .toml file (or .json), or a built-in plan: {', '.join(BUILT_IN)}")
    resume = topics.add_parser("resume", help="go on with what is in a folder", description="Make what is missing in a folder.")
    for each in (run, resume):
        _add_how(each)
        each.set_defaults(run=_run)
    resume.set_defaults(plan=None)
    size = topics.add_parser("size", help="how many videos a plan has, and how long they take", description="Makes nothing.")
    size.add_argument("plan", metavar="PLAN", help="as of run")
    size.set_defaults(run=_size)
    page = topics.add_parser(
        "page", help="write page.html and methods.csv", description="One file to decide from, of all rows that are there."
    )
    page.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of run")
    page.add_argument(
        "--published",
        type=Path,
        action="append",
        default=[],
        metavar="CSV",
        help="the study's published table of methods, shown beside ours; may be given several times",
    )
    page.add_argument(
        "--video-mb", type=float, default=40.0, metavar="N", help="videos that the file holds at most, in MB; default %(default)g"
    )
    page.set_defaults(run=_page)


def _add_how(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the results; made if it is not there")
    add("--engine", default="local", metavar="NAME", help="local (default), or ray: tasks on a cluster, see docs/cluster.md")
    add(
        "--address",
        metavar="ADDRESS",
        help="with ray: the cluster's, such as auto or ray://host:10001; default: begin one here",
    )
    add(
        "--retries",
        type=int,
        default=RETRIES,
        metavar="N",
        help="with ray: tries more where a machine dies; default %(default)s",
    )
    add(
        "--server",
        dest="servers",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="a ComfyUI server for targets of kind comfyui; may be given several times",
    )
    add(
        "--walks",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="take over walks that `qvg bench study` or `bench codecs` has finished (its folder walks or films), where they are "
        "the same video; may be given several times",
    )
    add("--shard", default="1/1", metavar="I/N", help="only every N-th case, from the I-th on: for machines that share nothing")


def _run(options: argparse.Namespace) -> int:
    from .command import run

    return run(options)


def _size(options: argparse.Namespace) -> int:
    from .command import size

    return size(options)


def _page(options: argparse.Namespace) -> int:
    from .command import page

    return page(options)
