"""Servers behind a login are told what they ask for, and nobody else is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.errors import ConfigError
from comfyui_qvg.qvg.server.address import server_url
from comfyui_qvg.qvg.server.login import VARIABLE, login_headers, without_login

from .fake import FakeComfyUI, success

BASIC = "Basic " + "dXNlcjpwdyB4"  # user:pw x


class _Guarded(FakeComfyUI):
    """Answers who knows the word; redirects what is asked for under `elsewhere`."""

    wanted = "Bearer secret"
    elsewhere = ""

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        self._guarded(request, super()._get)

    def _post(self, request: BaseHTTPRequestHandler) -> None:
        self._guarded(request, super()._post)

    def _guarded(self, request: BaseHTTPRequestHandler, answer) -> None:  # type: ignore[no-untyped-def]
        if request.headers["Authorization"] != self.wanted:
            self._reply(request, 401, {})
        elif self.elsewhere and request.path.startswith("/view"):
            request.send_response(302)
            request.send_header("Location", self.elsewhere)
            request.end_headers()
        else:
            answer(request)


@pytest.fixture
def guarded() -> Iterator[_Guarded]:
    server = _Guarded()
    server.files["walk.mp4"] = b"video"

    def finish(prompt_id: str) -> None:
        server.finish(prompt_id, success({"2": {"images": [{"filename": "walk.mp4", "subfolder": "", "type": "output"}]}}))

    server.on_prompt = finish
    yield server
    server.stop()


def _run(tmp_path: Path, server: str, *more: str) -> int:
    (tmp_path / "prompt.json").write_text(json.dumps({"2": {"class_type": "Save", "inputs": {}}}), encoding="utf-8")
    return main(
        ["run", str(tmp_path / "prompt.json"), "--server", server, "--out", str(tmp_path / "out"), "--timeout", "1", *more]
    )


def test_a_header_opens(guarded: _Guarded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(tmp_path, guarded.address) == 3
    assert "asks for a login (HTTP 401); give one with --header 'Authorization: Bearer ...'" in capsys.readouterr().err
    assert _run(tmp_path, guarded.address, "--header", "authorization: Bearer wrong") == 3
    said = capsys.readouterr().err
    assert "does not take the login that it was given (HTTP 401)" in said and "wrong" not in said
    assert _run(tmp_path, guarded.address, "--header", "authorization: Bearer secret") == 0
    assert (tmp_path / "out" / "walk.mp4").read_bytes() == b"video"


def test_a_variable_opens(guarded: _Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "X-Other: 1\nAuthorization: Bearer secret\n")
    assert _run(tmp_path, guarded.address) == 0


def test_a_name_and_password_in_the_address_open(guarded: _Guarded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guarded.wanted = BASIC
    assert _run(tmp_path, f"http://user:pw%20x@{guarded.address}") == 0
    assert "pw" not in capsys.readouterr().err
    assert _run(tmp_path, "http://user:pw x@no host/") == 2
    assert "pw" not in capsys.readouterr().err


@pytest.mark.parametrize("place", ["http://127.0.0.1:1/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "http://[", "https://{}/x"])
def test_nobody_else_is_asked(guarded: _Guarded, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    guarded.elsewhere = place.format(guarded.address)
    assert _run(tmp_path, guarded.address, "--header", "Authorization: Bearer secret") == 1
    said = capsys.readouterr().err
    assert "node 2 (Save): the server sends us to " in said and "only its own files are fetched" in said
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "line", ["", "x", ": y", "a b: c", "Authorization:", "X: a\nY: b", "X: \u4e00", "Host: x", "content-length: 3"]
)
def test_what_is_no_header(line: str) -> None:
    with pytest.raises(ConfigError, match="header") as refused:
        login_headers([line], "gpu")
    assert "\n" not in str(refused.value)


def test_addresses_lose_their_login() -> None:
    assert (
        without_login("https://u:p@gpu/x") == "https://gpu/x"
        and without_login("u@gpu:1") == "gpu:1"
        and without_login("a") == "a"
    )
    assert server_url("https://u:p@gpu/x") == "https://gpu/x"
    assert login_headers(["x-a: 1", "X-A: 2"], "https://user:pw%20x@gpu") == {"Authorization": BASIC, "X-A": "2"}
