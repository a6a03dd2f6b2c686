"""The `qvg` command."""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from .bench.arguments import add_bench
from .demo.session_command import add_session_option, add_sessions, begin_session, require_place
from .errors import BackendError, ConfigError, QVGError, one_line, quoted, shown
from .harness.arguments import add_study

MESSAGE_LETTERS = 500
# How writing to a stream ends that takes no more. On Windows a pipe without a reader is an invalid argument.
_UNHEARD = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EINVAL, errno.EBADF, errno.EFBIG)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. -> exit code: 0 done, 1 failed, 2 wrong arguments, 130 interrupted; `run` has one more, 3: server gone."""
    with _all_letters():
        try:
            options = _parser().parse_args(arguments)
            code = int(options.run(options))
            _flush()
            return code
        except (QVGError, BackendError) as error:
            _complain(f"error: {one_line(error)}")
            return 2 if isinstance(error, ValueError) else 1
        except KeyboardInterrupt:
            _complain("interrupted")
            return 130
        except OSError as error:
            # Files are named in errors of theirs. This is of a pipe whose reader has left, or of a full disk behind `>`.
            if error.filename is not None or error.errno not in _UNHEARD:
                raise
            _complain(f"error: what was to be said cannot be written ({error.strerror}); what had been done by then is done")
            _leave_stdout()
            return 1


def _complain(text: str) -> None:
    with suppress(OSError):  # nobody listens there either
        print(text, file=sys.stderr)


def _flush() -> None:
    if not sys.stdout.closed:
        sys.stdout.flush()


def _leave_stdout() -> None:
    """What is left in it would be tried again, and complained about, when Python ends."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextmanager
def _all_letters() -> Iterator[None]:
    """Letters that a stream's encoding lacks are written as escapes: a console of Windows, or a pipe, may have those of one part
    of the world, and a file may have any name. A program that was started without a stream has one that leads nowhere: else what
    is said to people would go to the other."""
    changed: list[tuple[io.TextIOWrapper, str | None]] = []
    absent = [name for name in ("stdout", "stderr") if getattr(sys, name) is None]
    for name in absent:
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (closed below)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            changed.append((stream, stream.errors))
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in changed:
            if not stream.closed:
                stream.reconfigure(errors=errors)
        for name in absent:
            getattr(sys, name).close()
            setattr(sys, name, None)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with an argument briefly, and what a terminal obeys not at all; its subcommands are of its kind."""

    def error(self, message: str) -> NoReturn:
        super().error(shown(message, MESSAGE_LETTERS))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="qvg", description="A long memory for autoregressive video models, in about two bits per value.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_plan(commands)
    _add_cards(commands)
    _add_run(commands)
    _add_convert(commands)
    _add_check_gpu(commands)
    add_sessions(commands)
    _add_doctor(commands)
    add_bench(commands)
    add_study(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "demo",
        help="walk through a small world with four memories and compare them",
        description="Walk through a painted world four times with the same seed: with the exact KV cache, in 2 bits as Quant "
        "VideoGen publishes it, with our default, and with an exact cache cut down to the default's bytes. Writes walk.mp4, "
        "demo.png, demo.json; takes one to a few minutes on a CPU.",
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="folder for the results; made if it is not there")
    add_session_option(command)
    command.add_argument(
        "--film",
        action="store_true",
        help="the demo film in place of the world: a causal Wan with time in its positions, blocks of 3 frames and a prompt; one "
        "turn of the camera is given, and film.mp4 shows how the film really goes on, too",
    )
    command.add_argument("--frames", type=int, metavar="N", help="latent frames (pictures) to make; default 151, with --film 108")
    command.add_argument("--seed", type=int, metavar="S", help="world and noise; default 1")
    command.add_argument(
        "--path",
        metavar="STR",
        help="camera path: keys w a s d and latent frames, such as d-12,s-10,a-12,w-10; keys together as w+d-8; walked again "
        "from its start when it ends before N frames; default: three times around a rectangle",
    )
    command.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from .demo.command import demo
    from .demo.walk import DEFAULT_FRAMES, DEFAULT_PATH, DEFAULT_SEED
    from .server.interrupt import interrupted_by

    require_place(options)
    if options.film:
        return _demo_film(options)
    defaults = {"frames": DEFAULT_FRAMES, "seed": DEFAULT_SEED, "path": DEFAULT_PATH}
    if options.session is not None:
        return begin_session(options, defaults)
    chosen = {name: value for name in defaults if (value := getattr(options, name)) is not None}
    # However it is ended, the results so far are written.
    with interrupted_by(signal.SIGINT, signal.SIGTERM):
        return demo(options.out, **{**defaults, **chosen})


def _demo_film(options: argparse.Namespace) -> int:
    from .demo.film import DEFAULT_FRAMES, film_demo
    from .demo.walk import DEFAULT_SEED
    from .server.interrupt import interrupted_by

    if options.path is not None:
        raise ConfigError(f"path is {quoted(options.path)}, but a film has no camera path; leave --path or --film out")
    if options.session is not None:
        return begin_session(options, {"frames": DEFAULT_FRAMES, "seed": DEFAULT_SEED})
    chosen = {name: value for name in ("frames", "seed") if (value := getattr(options, name)) is not None}
    with interrupted_by(signal.SIGINT, signal.SIGTERM):
        return film_demo(options.out, **chosen)


def _add_plan(commands: argparse._SubParsersAction[_Parser]) -> None:
    from .config import CODECS, OFFLOADS, PRESETS
    from .models.common.world_schedule import MODES
    from .models.registry import networks
    from .plan import WEIGHT_BYTES
    from .plan.command import DEFAULT_PRESET

    known = networks()
    wide = ", ".join(f"{name}: {shape.token_pixels}" for name, shape in known.items() if shape.token_pixels != 16)
    worlds = ", ".join(name for name, shape in known.items() if shape.context_frames is not None)
    command = commands.add_parser(
        "plan",
        help="how much memory a run will take, and whether it fits",
        description="Say, before anything is loaded, what a run will take on a graphics card: weights, cache now and at the end, "
        "what attention and one block work in, decoding; whether it fits, the longest video that does, the setting that would. "
        "Bytes of the cache are exact, the others upper bounds. 1 GB is 10^9 bytes.",
    )
    add = command.add_argument
    add("--model", required=True, metavar="NAME", help=", ".join(known))
    add("--width", type=int, required=True, metavar="W", help=f"pixels, a multiple of 16 ({wide})")
    add("--height", type=int, required=True, metavar="H", help="the same")
    add("--frames", type=int, required=True, metavar="N", help="pictures: 1 + 4k, such as 81")
    add("--preset", metavar="NAME", help=f"{', '.join(PRESETS)}; default {DEFAULT_PRESET}")
    add("--codec", choices=CODECS, help="a method in place of a preset")
    add("--bits", type=number, metavar="B", help="bits per value; with klt multiples of 1/16")
    add("--bits-v", type=number, metavar="B", help="the same for values; default as --bits")
    add("--span-frames", type=int, metavar="N", help="latent frames encoded together; default what the method asks for")
    add("--window", type=int, metavar="N", help="latent frames that the model may look back on; default all")
    add("--sink-frames", type=int, metavar="N", help="first latent frames, kept exactly; default 1")
    add("--recent-frames", type=int, metavar="N", help="newest latent frames, kept exactly; default 3")
    add("--workspace-mb", type=int, metavar="N", help="MiB that attention reads through; default 512")
    add("--offload", choices=OFFLOADS, help="where encoded frames are kept; default gpu")
    add("--merge", type=float, metavar="COSINE", help="count tokens that are there already (TempCache), such as 0.99; default 0")
    add("--sparse", type=float, metavar="SHARE", help="the share of encoded tokens that is read (AnnSA), such as 0.15; default 0")
    add("--block-frames", type=int, metavar="N", help="latent frames denoised together; default as the model was trained")
    add("--given-frames", type=int, default=0, metavar="N", help="latent frames of a start image or video; default 0")
    add("--mode", choices=MODES, help=f"of worlds ({worlds}), as on World Sampler; default {MODES[0]}")
    add("--batch", type=int, default=1, metavar="N", help="videos at once; default 1")
    add("--weights", default="bf16", metavar="TYPE", help=f"{', '.join(WEIGHT_BYTES)}; default bf16")
    add("--vram-gb", type=float, metavar="G", help="the card's memory; default that of the card there is")
    add("--json", action="store_true", help="print the result as one JSON object on stdout")
    command.set_defaults(run=_plan)


def _add_cards(commands: argparse._SubParsersAction[_Parser]) -> None:
    from .plan.cards import CARDS_GB, card_models

    known = ", ".join(card_models())
    command = commands.add_parser(
        "cards",
        help="the longest video for every card",
        description="Say for cards from 8 to 80 GB how long a video or walk they have room for: each family, weights in bf16 and "
        "fp8, with everything on the card, weights in main memory, or the encoded memory there too. Takes half a minute.",
    )
    command.add_argument("--model", action="append", metavar="NAME", help=f"of these only, may be given several times: {known}")
    cards = ", ".join(map(str, CARDS_GB))
    command.add_argument("--gb", action="append", type=float, metavar="GB", help=f"a card as it is sold; default {cards}")
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(run=_cards)


def _cards(options: argparse.Namespace) -> int:
    from .plan.command import print_cards

    return print_cards(options)


def number(text: str) -> int | float:
    """Whole where it can be. ValueError, of which the parser makes a sentence with this function's name in it."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _plan(options: argparse.Namespace) -> int:
    from .plan.command import print_plan

    return print_plan(options)


def _add_run(commands: argparse._SubParsersAction[_Parser]) -> None:
    from .server.address import DEFAULT_SERVER
    from .server.command import DEFAULT_TIMEOUT_SECONDS, EXIT_CODES_TEXT
    from .server.login import EXAMPLE, VARIABLE

    command = commands.add_parser(
        "run",
        help="run a workflow on a ComfyUI server and fetch what it makes",
        description="Queue a workflow in API format on a ComfyUI server, show how it goes on, and download everything\n"
        "it puts out: pictures, videos, sound, texts. Nothing is overwritten.",
        epilog=EXIT_CODES_TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "workflow",
        type=Path,
        metavar="FILE",
        help="workflow in API format, such as workflows/api/demo_world.json; or a picture or video that ComfyUI saved with one, "
        "an entry of /history, the body of a request to /prompt",
    )
    command.add_argument(
        "--server", default=DEFAULT_SERVER, metavar="ADDRESS", help="HOST:PORT, or an http(s) address; default %(default)s"
    )
    command.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="change an input first; NODE is a number, title or class, such as 3.frames=20 or 'QVG Camera Path.path=d-9,a-9'; "
        "may be given several times",
    )
    command.add_argument(
        "--out", type=Path, default=Path("output"), metavar="DIR", help="folder for the outputs; default ./output"
    )
    command.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="how long a server that has fallen silent is waited for; default %(default)g",
    )
    command.add_argument(
        "--header",
        dest="headers",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help=f"a header for a server behind a login, such as {EXAMPLE}; may be given several times; also, one a line, in the "
        f"variable {VARIABLE}",
    )
    command.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from .server.command import run_workflow
    from .server.interrupt import interrupted_by

    # Whoever ends this program does not want the run on the server either.
    with interrupted_by(signal.SIGINT, signal.SIGTERM):
        return run_workflow(
            options.workflow, options.server, options.settings, options.out, options.timeout, options.json, options.headers
        )


def _add_convert(commands: argparse._SubParsersAction[_Parser]) -> None:
    from .models.common.eight_bits import FP8_NAME
    from .models.common.found import AUTO
    from .models.common.weight_sets import WEIGHTS
    from .models.convert import DTYPE_NAMES
    from .models.registry import families, joined, variants

    made = "; ".join(f"of {family.title}, {family.converts}" for family in families() if family.converts)

    command = commands.add_parser(
        "convert",
        help="make one .safetensors file, known by ComfyUI or by our loader, of a released one",
        description="Read a checkpoint as it was released, or repackaged, and write it as one .safetensors file: "
        f"{made}. Memory holds one tensor at a time. Nothing is overwritten; a run that is broken off leaves nothing behind.",
    )
    command.add_argument(
        "source", type=Path, metavar="IN", help=".pt, .pth, .safetensors, one of several parts, or a release's folder"
    )
    command.add_argument("out", type=Path, metavar="OUT", help="the .safetensors file to write")
    command.add_argument("--variant", default=AUTO, metavar="NAME", help=f"{AUTO}, {', '.join(variants())}")
    command.add_argument(
        "--weights", default=AUTO, metavar="NAME", help=f"weights of the file to take: {AUTO} (as released), {', '.join(WEIGHTS)}"
    )
    eight = joined([family.title for family in families() if family.files and family.files.fp8])
    names = f"{', '.join(DTYPE_NAMES)}; of {eight} also {FP8_NAME}, with a scale for each matrix"
    command.add_argument("--dtype", metavar="NAME", help=f"what to store: {names}; default bf16")
    command.add_argument("--lora", type=Path, metavar="FILE", help="a LoRA to merge, as LongLive's lora.pt into longlive_base.pt")
    command.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    command.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    from .convert import convert
    from .server.interrupt import interrupted_by

    # However it is ended, half a file is not left.
    with interrupted_by(signal.SIGINT, signal.SIGTERM):
        return convert(
            options.source, options.out, options.variant, options.weights, options.dtype, options.lora, as_json=options.json
        )


def _add_check_gpu(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "check-gpu",
        help="is every kernel right on this graphics card, and how fast is it",
        description="Compare every kernel with torch on this machine's GPU, then time attention at three sizes, encoding and "
        "decoding: five minutes. Writes gpu_check.json, one row, and gpu_check.html, the same to read; nothing if one is wrong.",
    )
    command.add_argument(
        "--out", type=Path, default=Path("gpu_check"), metavar="DIR", help="folder for row and page; default gpu_check"
    )
    command.add_argument(
        "--rehearse", action="store_true", help="small sizes, on any machine: a dry run, whose times mean nothing"
    )
    command.set_defaults(run=_check_gpu)


def _check_gpu(options: argparse.Namespace) -> int:
    from .bench.gpu.command import check_gpu

    return check_gpu(options.out, options.rehearse)


def _add_doctor(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "doctor",
        help="what of a ComfyUI the nodes touch, and what of that it lacks",
        description="Read the sources of a ComfyUI and say what the nodes use of it that is not there; nothing is imported "
        "or run. For a ComfyUI that is older or newer than those that were tried.",
    )
    command.add_argument(
        "--comfyui", type=Path, metavar="FOLDER", help="the folder with main.py; default: the one that this pack is in"
    )
    command.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    command.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from .doctor.command import doctor

    return doctor(options.comfyui, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
