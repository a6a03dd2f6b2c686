"""The nodes' texts in other languages: complete, without leftovers, and readable by ComfyUI's page."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = ("de", "en", "es", "fr", "ja", "ko", "ru", "zh")
# Scripts that a text of this language has, in a proportion no untranslated text reaches.
SCRIPTS = {"zh": r"[\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff\u4e00-\u9fff]", "ko": r"[\uac00-\ud7af]", "ru": r"[\u0400-\u04ff]"}


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = _load("update_locales")


def texts(language: str) -> Any:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def leaves(node: Any, path: str = "") -> dict[str, str]:
    if isinstance(node, str):
        return {path: node}
    return {at: text for key, value in node.items() for at, text in leaves(value, f"{path}/{key}").items()}


def choices() -> tuple[list[str], list[str], list[str]]:
    """Modes of the cache node, presets, and transforms of klt."""
    golden = json.loads((ROOT / "tests" / "nodes" / "object_info.json").read_text(encoding="utf-8"))
    options = golden["nodes"]["QVGKVCache"]["input"]["required"]["cache"][1]["options"]
    widgets = {option["key"]: option["inputs"]["required"] for option in options}
    return list(widgets), widgets["preset"]["preset"][1]["options"], widgets["klt"]["transform"][1]["options"]


def test_these_are_the_languages() -> None:
    assert sorted(folder.name for folder in (ROOT / "locales").iterdir()) == sorted(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_there_and_no_other(language: str) -> None:
    have, wanted = tool.keys(texts(language)), tool.keys(tool.english())
    assert wanted - have == set(), "to be translated; tools/update_locales.py lists them"
    assert have - wanted == set(), "of nothing that exists; tools/update_locales.py deletes them"


def test_english_is_what_the_nodes_say() -> None:
    assert texts("en") == tool.english(), "run tools/update_locales.py"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_takes_every_text_as_it_is(language: str) -> None:
    """Its message format gives a meaning to these signs: links, choices, placeholders."""
    assert {at: text for at, text in leaves(texts(language)).items() if re.search(r"[@|{}]", text) or not text.strip()} == {}


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_it_is_a_translation(language: str) -> None:
    english = leaves(texts("en"))
    long = {at: text for at, text in leaves(texts(language)).items() if len(english[at]) > 30}
    assert [at for at, text in long.items() if text == english[at]] == []
    if language in SCRIPTS:
        assert [at for at, text in long.items() if len(re.findall(SCRIPTS[language], text)) < 4] == []


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_verdicts_of_the_study_are_those_of_its_rows(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    made = importlib.import_module("verdict_texts").tooltip(language)
    assert texts(language)["QVGKVCache"]["inputs"]["cache_method"]["tooltip"] == made, "run tools/update_locales.py --schemas"


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_must_be_typed_is_not_translated(language: str) -> None:
    """Keys of the camera path, names of choices and of other nodes' classes."""
    mine = texts(language)
    assert all(word in mine["QVGCameraPath"]["inputs"]["path"]["tooltip"] for word in ("w a s d", "up down left right", "w+d-8"))
    inputs, (modes, presets, transforms) = mine["QVGKVCache"]["inputs"], choices()
    assert [mode for mode in modes if mode not in inputs["cache"]["tooltip"]] == []
    assert [preset for preset in presets if preset not in inputs["cache_preset"]["tooltip"]] == []
    assert [name for name in transforms if name not in inputs["cache_transform"]["tooltip"]] == []
    assert "QVG/interrupted_*.latent" in mine["QVGSampler"]["inputs"]["keep_finished"]["tooltip"]
    assert "SamplerCustomAdvanced" in mine["QVGSampler"]["description"]
