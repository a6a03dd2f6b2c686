"""Names that mean one file on every system, and names that every system takes."""

from __future__ import annotations

import re

import pytest
from comfyui_qvg.qvg.file_names import MOST_BYTES, fitted, safe_part, same_file, stem_and_ending


@pytest.mark.parametrize(
    ("name", "listed", "found"),
    [
        ("folder/model.pt", ["folder\\model.pt"], "folder\\model.pt"),
        ("folder\\model.pt", ["folder/model.pt"], "folder/model.pt"),
        ("a\\b/c.pt", ["a/b/c.pt"], "a/b/c.pt"),
        ("a\\\\b.pt", ["a/b.pt"], "a/b.pt"),
        ("model.pt", ["folder/model.pt", "model.pt"], "model.pt"),
        ("model.pt", ["folder/model.pt"], None),
        ("folder/model.pt", ["folder/Model.pt", "other/model.pt", "xfolder/model.pt"], None),
        ("../model.pt", ["model.pt"], None),
        # On Linux a name may hold a backslash. What is listed just so is meant.
        ("a\\b.pt", ["a/b.pt", "a\\b.pt"], "a\\b.pt"),
        ("видео\\猫.pt", ["видео/猫.pt"], "видео/猫.pt"),
        ("", ["a.pt"], None),
    ],
)
def test_the_same_file(name: str, listed: list[str], found: str | None) -> None:
    assert same_file(name, listed) == found
    assert same_file(name, iter(listed)) == found


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("walk 1.5 (é, 猫)", "walk 1.5 (é, 猫)"),
        (".hidden", ".hidden"),
        ("12:30:05", "12_30_05"),
        ('a<b>c"d|e?f*g', "a_b_c_d_e_f_g"),
        ("a/b\\c\x00\x1f", "a_b_c__"),
        ("\ud800x", "_x"),
        ("dots... ", "dots____"),
        ("CON", "_CON"),
        ("con.mp4", "_con.mp4"),
        ("nul .txt", "_nul .txt"),
        ("LPT1.a.b", "_LPT1.a.b"),
        ("COM\u00b9", "_COM\u00b9"),
        ("CONSOLE", "CONSOLE"),
        ("COM10", "COM10"),
    ],
)
def test_a_part_that_every_system_takes(name: str, safe: str) -> None:
    assert safe_part(name) == safe == safe_part(safe)
    assert not re.search(r'[<>:"/\\|?*\x00-\x1f]', safe)


def test_names_are_cut_between_letters() -> None:
    assert fitted("猫" * 100, ".mp4") == "猫" * 83 + ".mp4"
    assert fitted("walk", "-2.mp4") == "walk-2.mp4" and fitted("abc", ".x", 4) == "ab.x"
    assert all(len(fitted("é" * count, "-12.mp4").encode()) <= MOST_BYTES for count in range(100, 200))


@pytest.mark.parametrize(
    ("name", "parts"),
    [("a.b.png", ("a.b", ".png")), ("walk", ("walk", "")), (".png", (".png", "")), ("a." + "x" * 40, ("a." + "x" * 40, ""))],
)
def test_endings(name: str, parts: tuple[str, str]) -> None:
    assert stem_and_ending(name) == parts
