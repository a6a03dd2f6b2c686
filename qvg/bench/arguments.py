"""`qvg bench`: its topics and their arguments. What they need is imported when one of them runs."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import Any

from ..errors import ConfigError, quoted


def add_bench(commands: argparse._SubParsersAction[Any]) -> None:
    """The command `bench` and its topics."""
    command = commands.add_parser("bench", help="measure and compare", description="Measurements that anyone can repeat.")
    topics = command.add_subparsers(title="topics", required=True, metavar="TOPIC")
    _add_codecs(topics)
    _add_study(topics)
    _add_ablations(topics)


def _add_codecs(topics: argparse._SubParsersAction[Any]) -> None:
    codecs = topics.add_parser(
        "codecs",
        help="every compression method on the demo world and on synthetic tensors, or on the demo film",
        description="Walk through worlds with every method and with the exact cache, and compare the videos; probe attention on "
        "synthetic keys and values. Writes codecs.csv, codecs.html, settings.md; with --model film, films of the demo film, and "
        "films.csv. A run that was broken off goes on there.",
    )
    codecs.add_argument(
        "--model", choices=("world", "film"), default="world", help="the demo world (default), or the demo film: a causal Wan"
    )
    codecs.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results; made if it is not there")
    codecs.add_argument("--quick", action="store_true", help="a few methods on two short walks: minutes on two cores")
    codecs.add_argument("--worlds", type=int, metavar="N", help="worlds, or films; default 8, with --quick 2")
    codecs.add_argument("--methods", metavar="LIST", help="names separated by semicolons; default all, with --quick six")
    codecs.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at work at the same time; default 1")
    codecs.add_argument("--parts", metavar="LIST", help="walks (with the tensors), openings; default both")
    codecs.add_argument(
        "--scenarios",
        metavar="LIST",
        help="openings: ordinary, black, fade, gradient, title, noise, freeze, cut, loud; default all",
    )
    codecs.add_argument(
        "--development", action="store_true", help="other worlds, for choosing settings: those shown stay unseen meanwhile"
    )
    codecs.set_defaults(run=_bench_codecs)


def _add_study(topics: argparse._SubParsersAction[Any]) -> None:
    study = topics.add_parser(
        "study",
        help="the 33 methods of arXiv 2603.27469 and what others ship, on the demo world",
        description="Walk with every method: corrected, as published, and as QVG KV Cache sets it. Writes study.csv after every "
        "walk. A run that was broken off goes on there.",
    )
    study.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results; made if it is not there")
    study.add_argument("--methods", metavar="LIST", help="names separated by semicolons; default all")
    study.add_argument(
        "--forms", metavar="LIST", help="corrected, published, node (corrected, with the node's exact frames); default all"
    )
    study.add_argument("--worlds", type=int, default=2, metavar="N", help="worlds to walk through; default 2")
    study.add_argument("--model", default="world", metavar="NAME", help="world or film: what the methods are judged on")
    study.add_argument("--frames", type=int, metavar="N", help="latent frames of each; default 54, of films 60")
    study.add_argument("--paths", type=int, default=1, metavar="N", help="paths through each, 1 or 2; default 1")
    study.set_defaults(run=_bench_study)


def _add_ablations(topics: argparse._SubParsersAction[Any]) -> None:
    ablations = topics.add_parser(
        "ablations",
        help="what the Quant VideoGen paper takes apart, on a trained model's keys and values",
        description="Record keys and values of walks with the exact cache, and compare errors with and without each part. Writes "
        "ablations.csv; recordings are kept and used again.",
    )
    ablations.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the results; made if it is not there"
    )
    ablations.add_argument("--worlds", type=int, default=2, metavar="N", help="worlds to walk through; default 2")
    ablations.add_argument("--model", default="world", metavar="NAME", help="whose keys and values: world or film")
    ablations.set_defaults(run=_bench_ablations)


def _bench_codecs(options: argparse.Namespace) -> int:
    from ..server.interrupt import interrupted_by
    from .codecs import PARTS, bench_codecs, bench_films  # matplotlib and tqdm are needed by this command only

    names = _listed(options.methods, ";")
    if options.methods is not None and not names:
        raise ConfigError(f"methods is {quoted(options.methods)}, which names none; leave it out for all of them")
    parts, scenarios = _listed(options.parts, ",") or PARTS, _listed(options.scenarios, ",")
    if options.model == "film" and (options.parts or options.scenarios):
        raise ConfigError("parts and scenarios are of the demo world, but model is film; leave them out, or choose world")
    with interrupted_by(signal.SIGINT, signal.SIGTERM):
        if options.model == "film":
            return bench_films(options.out, options.quick, options.worlds, names, options.jobs, options.development)
        return bench_codecs(
            options.out, options.quick, options.worlds, names, options.jobs, parts, scenarios, options.development
        )


def _bench_ablations(options: argparse.Namespace) -> int:
    from ..server.interrupt import interrupted_by
    from .ablations import bench_ablations

    with interrupted_by(signal.SIGINT, signal.SIGTERM):
        return bench_ablations(options.out, options.worlds, model=options.model)


def _bench_study(options: argparse.Namespace) -> int:
    from ..server.interrupt import interrupted_by
    from .study import FORMS, bench_study  # tqdm is needed by this command only

    names = _listed(options.methods, ";")
    if options.methods is not None and not names:
        raise ConfigError(f"methods is {quoted(options.methods)}, which names none; leave it out for all of them")
    with interrupted_by(signal.SIGINT, signal.SIGTERM):
        return bench_study(
            options.out, names, _listed(options.forms, ",") or FORMS, options.worlds, options.paths, options.frames, options.model
        )


def _listed(text: str | None, separator: str) -> list[str]:
    return [name.strip() for name in (text or "").split(separator) if name.strip()]
