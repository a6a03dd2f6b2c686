"""Camera paths as people and programs write them, made from a seed: each is walked, or refused in one sentence.

    python tools/camera_paths.py                        200,000 paths, a minute or two of one core
    python tools/camera_paths.py --seed 7 --count 5000

A path that is taken reads back as itself, has as many poses as it says, and leads where its keys say; one that is refused gets a
`CameraPathError` on one line of at most 400 letters. None takes longer than a second. The exit code says whether all did.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

import numpy as np
from bootstrap_package import comfyui_qvg  # noqa: F401  (first: it names the repository `comfyui_qvg`)
from comfyui_qvg.qvg.camera import parse_path, walk
from comfyui_qvg.qvg.camera.cameras import Cameras
from comfyui_qvg.qvg.camera.paths import KEYS, format_path
from comfyui_qvg.qvg.camera.poses import camera_poses
from comfyui_qvg.qvg.errors import CameraPathError

SECONDS, LETTERS = 1.0, 400
_ODD = (
    "",
    " ",
    "-",
    "--",
    "+",
    ",",
    "0",
    "-1",
    "1.5",
    "1e3",
    "inf",
    "nan",
    "\u0665",
    "\x1b[2J",
    "x" * 5000,
    "9" * 5000,
    "w-",
    "\ud800",
)
_SEPARATORS = (",", ",", ",", " , ", "\n,", ";", "", ",,")


def a_path(dice: random.Random) -> str:
    """Mostly right, with something odd here and there; now and then letters of any kind."""
    if dice.random() < 0.05:
        return "".join(dice.choice("wasd+-,0123456789 \tupdownleftright") for _ in range(dice.randrange(40)))
    text = ""
    for _ in range(dice.choice([1, 1, 2, 3, 5, 20])):
        keys = dice.choice(["+", "+", " + "]).join(dice.sample(KEYS, 1 if dice.random() < 0.9 else dice.choice([2, 3])))
        frames = str(dice.choice([100_000, 100_001, "007", 0, 99_999]) if dice.random() < 0.04 else dice.randrange(1, 60))
        part = f"{keys}-{frames}"
        if dice.random() < 0.03:
            place = dice.randrange(len(part) + 1)
            part = part[:place] + dice.choice(_ODD) + part[place + dice.randrange(2) :]
        text += (dice.choice(_SEPARATORS) if dice.random() < 0.03 else ",") * bool(text) + (
            part.upper() if dice.random() < 0.05 else part
        )
    return text


def complaint(text: str, dice: random.Random) -> tuple[bool, str]:
    """(whether it was taken, what is wrong or "")."""
    try:
        moves = parse_path(text)
        frames, beyond = dice.choice([1, 2, 7, 30]), dice.choice(["again", "stay"])
        if parse_path(format_path(moves)) != moves:
            return True, "it does not read back as itself"
        poses = camera_poses(moves, frames, beyond)
        if poses.shape != (frames, 4, 4) or not np.isfinite(poses).all():
            return True, f"poses {poses.shape} of {frames}"
        Cameras(poses)
        places = walk(moves, frames)
        if places.shape != (frames, 2) or np.abs(np.diff(places, axis=0)).max(initial=0) > 1:
            return True, f"places {places.shape} of {frames}"
    except CameraPathError as error:
        said = str(error)
        return False, "" if said.isprintable() and 20 < len(said) <= LETTERS else f"no one sentence: {said[:500]!r}"
    return True, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=200_000)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    taken = wrong = 0
    slowest = 0.0
    for number in range(options.count):
        text = a_path(dice)
        begun = time.process_time()
        try:
            walked, why = complaint(text, dice)
        except Exception as error:
            walked, why = False, f"{type(error).__name__}: {error}"
        seconds = time.process_time() - begun
        why = why or (f"{seconds:.1f} s" if seconds > SECONDS else "")
        taken, wrong, slowest = taken + walked, wrong + bool(why), max(slowest, seconds)
        if why:
            print(f"{number}: {text[:200]!r}: {why}", file=sys.stderr)
    refused = options.count - taken
    print(
        f"{options.count} paths, seed {options.seed}: {taken} walked, {refused} refused, {wrong} wrong; at most {slowest:.2f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
