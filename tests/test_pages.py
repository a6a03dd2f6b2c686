"""README.md and docs/: what is made is current, what is linked exists, what is printed runs."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from comfyui_qvg.qvg.cli import _parser, main
from comfyui_qvg.qvg.models.registry import loaded_with
from PIL import Image

from .helpers import ROOT
from .nodes import standin

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
EXAMPLES = [(name, source) for name, text in TEXTS.items() for source in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
BLOCKS = [
    block
    for text in TEXTS.values()
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    if not language
]
COMMANDS = sorted({line.split(" #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.startswith("qvg ")})


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/write_docs.py."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module("write_docs")
    finally:
        sys.path.remove(str(ROOT / "tools"))


def test_made_parts_are_current(tool: ModuleType) -> None:
    assert tool.outdated() == [], "run `python tools/write_docs.py`"


def test_every_part_is_somewhere(tool: ModuleType) -> None:
    texts = [page.read_text(encoding="utf-8") for page in tool.pages()]
    shown = {name for text in texts for name in re.findall(r"made by tools/write_docs\.py: (\w+)", text)}
    assert shown == set(tool.PARTS)


def test_a_page_that_is_behind_is_found(tool: ModuleType) -> None:
    text = TEXTS["architecture.md"]
    behind = text.replace("    r0 --> ", "    r0 -.-> ")
    assert behind != text and tool.renewed(behind) == text
    assert tool.renewed("<!-- made by tools/write_docs.py: rooms -->\n<!-- end -->\n").count("\n") > 10


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 150


def test_the_moving_picture_is_small_and_moves() -> None:
    file = ROOT / "assets" / "walk.webp"
    assert file.stat().st_size <= 2_000_000
    with Image.open(file) as picture:
        assert picture.n_frames > 100  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXTS[page.name]):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


def test_all_pages_are_found_from_the_readme() -> None:
    assert all(f"](docs/{page.name})" in TEXTS["README.md"] for page in PAGES[1:])


@pytest.mark.parametrize(("name", "source"), EXAMPLES, ids=[f"{name} {number}" for number, (name, _) in enumerate(EXAMPLES)])
def test_examples_run(name: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len([line for line in source.splitlines() if line.strip() and not line.startswith("#")]) <= 14
    example = tmp_path / "example.py"
    example.write_text(source, encoding="utf-8")
    runpy.run_path(str(example))
    assert capsys.readouterr().out.strip(), "an example shows what it does"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = shlex.split(command)[1:]
    options = _parser().parse_args(arguments)
    if arguments[0] == "plan":
        assert main(arguments) == 0 and "It fits" in capsys.readouterr().out
    if arguments[0] == "run":
        assert (ROOT / options.workflow).exists()


def test_commands_are_all_described() -> None:
    assert {
        "qvg demo",
        "qvg resume",
        "qvg sessions",
        "qvg plan",
        "qvg cards",
        "qvg doctor",
        "qvg run",
        "qvg convert",
        "qvg check-gpu",
        "qvg bench codecs",
        "qvg bench study",
        "qvg bench ablations",
    } <= set(re.findall(r"^## (.*)$", TEXTS["commands.md"], re.MULTILINE))
    shown = {"demo", "resume", "sessions", "plan", "cards", "doctor", "run", "convert", "check-gpu", "bench", "study"}
    assert {command.split()[1] for command in COMMANDS} == shown


def test_a_plan_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a machine where torch encodes; kernels of ours work in less."""
    monkeypatch.setattr("comfyui_qvg.qvg.plan.activations._by_triton", bool)
    ((command, said),) = re.findall(r"```\n\$ (qvg plan .*?)\n(.*?)```", TEXTS["memory.md"], re.DOTALL)
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out == said


def test_every_node_and_template_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in standin.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    nodes = importlib.import_module("comfyui_qvg.nodes").NODES
    for node in nodes:
        about = standin.object_info(node)
        assert f"[{about['display_name']}](../web/docs/{about['name']}.md)" in TEXTS["comfyui.md"]
    for name in [name for name in sys.modules if name.startswith("comfyui_qvg.nodes")]:
        monkeypatch.delitem(sys.modules, name)
    assert all(f"](../workflows/{file.name})" in TEXTS["comfyui.md"] for file in (ROOT / "workflows").glob("*.json"))


def test_the_two_commands_are_there() -> None:
    assert "python install.py --demo" in TEXTS["README.md"] and "python install.py --test" in TEXTS["commands.md"]


def test_node_help_stands_alone() -> None:
    """It is shown in ComfyUI, where no page of ours is."""
    for page in (ROOT / "web" / "docs").glob("*.md"):
        assert not re.search(r"README|\]\((?!https?:)|docs/|\.md\b", page.read_text(encoding="utf-8")), page.name


def test_the_help_of_a_loader_has_a_row_for_every_variant() -> None:
    """Frames per block, sigmas and shift are what the registry says."""
    text = (ROOT / "web" / "docs" / "QVGLoadCausalWan.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w+-]+)(?: \(`\w+`\))? \| (\d) \| (.*?) \| (\S+) \|$", text, re.MULTILINE)
    known = [each for family in loaded_with("Load Causal Wan") for each in family.variants.values()]
    assert [(name, int(block), float(shift)) for name, block, _, shift in rows] == [
        (each.name, each.frames_per_block, each.shift) for each in known
    ]
    for each, (_, _, sigmas, _) in zip(known, rows, strict=True):
        shown = [[float(number) for number in part.split(", ")] for part in sigmas.split("; first block ")]
        expected = [each.sigmas] + ([each.first_block_sigmas] if each.first_block_sigmas else [])
        assert shown == [pytest.approx(levels, abs=5e-5) for levels in expected], each.name


def test_no_comment_cites_what_is_not_here() -> None:
    """Comments lead to docs/ and to papers."""
    outside = re.compile(r"design\.md|\breference: (kernels|kv_|models_|comfyui|demo_)|kv_quantization|\breference/\w+\.md")
    folders = ("qvg", "kernels", "nodes", "tools", "benchmarks", "tests")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py") if file.name != Path(__file__).name]
    assert [str(file) for file in files if outside.search(file.read_text(encoding="utf-8"))] == []
