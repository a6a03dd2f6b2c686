"""A plan of `qvg study` of this evaluation set.

python make_plan.py short --workflow self_forcing_t2v.json --prompt-input 3.text --seed-input 5.noise_seed --out p.toml
python make_plan.py stories --workflow ... | walks --frames 70 --out walks.toml
python make_plan.py pictures --workflow causal_forcing_i2v.json --picture-input LoadImage.image ... --out p.toml
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import tomllib

HERE = Path(__file__).resolve().parent
METHODS = ["@presets", "RTN_INT4", "PRQ_INT4", "FLOWCACHE_SOFT_PRUNE_INT4", "NVFP4"]
JOINED = " Then: "


def prompts(what: str) -> list[str]:
    """Texts of the short prompts, of the stories as one text each, of start pictures, or camera paths."""
    if what == "walks":
        return [each["path"] for each in _read("trajectories.toml")["trajectory"]]
    found = _read("prompts.toml")
    if what == "pictures":
        return [each["text"] for each in found["start"]]
    if what == "short":
        return [each["text"] for each in found["short"]]
    return [JOINED.join(each["shots"]) for each in found["story"]]


def plan_text(options: argparse.Namespace) -> str:
    """TOML."""
    chosen = prompts(options.what)[: options.most]
    lines = [
        f'name = "evaluation set, {options.what}"',
        f"methods = {_listed(options.methods)}",
        f"baseline = {json.dumps(options.baseline)}",
        f"seeds = {_read('prompts.toml')['seeds']}",
        f"frames = {options.frames}",
    ]
    if options.what == "pictures":
        for name in paint(options.out.parent / "pictures", options.size)[: options.most]:
            text = next(each["text"] for each in _read("prompts.toml")["start"] if each["name"] == name)
            lines += ["", *_target(options, [text]), f"name = {_text(name)}"]
            lines += [f"picture = {_text(f'pictures/{name}.png')}", f"picture_input = {_text(options.picture_input)}"]
    else:
        lines += ["", *_target(options, chosen)]
    return "\n".join(lines) + "\n"


def _target(options: argparse.Namespace, texts: list[str]) -> list[str]:
    """One of the plan's."""
    lines = ["[[targets]]", f'kind = "{"world" if options.what == "walks" else "comfyui"}"']
    if options.what != "walks":
        lines.append(f"workflow = {_text(str(options.workflow.resolve()))}")
        lines.append(f"prompt_input = {_text(options.prompt_input)}")
        lines.append(f"seed_inputs = {_listed(options.seed_input)}")
        lines += [f"frames_input = {_text(options.frames_input)}"] if options.frames_input else []
    return [*lines, "prompts = [\n" + "".join(f"  {_text(each)},\n" for each in texts) + "]"]


def paint(folder: Path, size: list[int]) -> list[str]:
    """The start pictures into a folder. -> their names"""
    import pictures
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for name in pictures.SCENES:
        Image.fromarray(pictures.paint(name, *size)).save(folder / f"{name}.png")
    return list(pictures.SCENES)


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((HERE / name).read_text(encoding="utf-8"))


def _text(value: str) -> str:
    """A string of TOML, which takes JSON's."""
    return json.dumps(value, ensure_ascii=False)


def _listed(values: list[str]) -> str:
    return f"[{', '.join(_text(each) for each in values)}]"


def main() -> int:
    """-> exit code."""
    parser = argparse.ArgumentParser(description="Make a plan of `qvg study` of this evaluation set.")
    parser.add_argument("what", choices=("short", "stories", "pictures", "walks"), help="for a workflow; walks: the demo world's")
    parser.add_argument("--workflow", type=Path, metavar="FILE", help="in API format")
    parser.add_argument("--prompt-input", metavar="NODE.INPUT", help="where the prompt goes")
    parser.add_argument("--seed-input", action="append", default=[], metavar="NODE.INPUT", help="may be given several times")
    parser.add_argument("--frames-input", metavar="NODE.INPUT", help="where the length goes")
    parser.add_argument("--picture-input", metavar="NODE.INPUT", help="of pictures: where the start picture goes")
    parser.add_argument("--size", type=int, nargs=2, default=[832, 480], metavar=("W", "H"), help="of pictures; default 832 480")
    parser.add_argument("--frames", type=int, nargs="+", default=[81], metavar="N", help="lengths, default 81")
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="NAME")
    parser.add_argument("--baseline", default="qvg", metavar="NAME")
    parser.add_argument("--most", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    if options.what != "walks" and not (options.workflow and options.prompt_input and options.seed_input):
        parser.error("a workflow's plan needs --workflow, --prompt-input and --seed-input")
    if options.what == "pictures" and not options.picture_input:
        parser.error("a plan of start pictures needs --picture-input")
    options.out.write_text(plan_text(options), encoding="utf-8")
    print(f"wrote {options.out}; `qvg study size {options.out}` says how large it is")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
