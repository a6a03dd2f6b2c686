"""`qvg run` against a small server of our own: how a run ends, and what is left of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.server.outputs import Outputs
from comfyui_qvg.qvg.server.run import Run

from ...helpers import ROOT
from .fake import FakeComfyUI, error, success

PROMPT = {
    "1": {"class_type": "Make", "inputs": {"frames": 5, "path": "d-3"}, "_meta": {"title": "Make It"}},
    "2": {"class_type": "Save", "inputs": {"images": ["1", 0]}},
}
VIDEO = {"images": [{"filename": "walk.mp4", "subfolder": "QVG", "type": "output"}], "animated": [True]}
TEXT = {"text": ["two\nlines"]}
POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and limits")


@dataclass
class Ended:
    """What a run printed and left."""

    code: int
    said: str
    result: dict[str, Any]
    out: Path

    @property
    def files(self) -> set[str]:
        return {file.name for file in self.out.iterdir()} if self.out.exists() else set()


@pytest.fixture
def fake() -> Iterator[FakeComfyUI]:
    server = FakeComfyUI()
    server.files["walk.mp4"] = bytes(range(256)) * 4000
    yield server
    server.stop()


@pytest.fixture
def run(fake: FakeComfyUI, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run PROMPT there."""
    file = tmp_path / "prompt.json"
    file.write_text(json.dumps(PROMPT), encoding="utf-8")

    def call(*more: str, timeout: str = "1", server: str = "") -> Ended:
        out = tmp_path / "out"
        arguments = [
            "run",
            str(file),
            "--server",
            server or fake.address,
            "--out",
            str(out),
            "--timeout",
            timeout,
            "--json",
            *more,
        ]
        code = main(arguments)
        printed = capsys.readouterr()
        return Ended(code, printed.err, json.loads(printed.out), out)

    return call


def test_a_run_fetches_files_and_texts(fake: FakeComfyUI, run: Callable[..., Ended]) -> None:
    fake.on_prompt = lambda name: fake.when_looked_for(lambda: fake.finish(name, success({"2": VIDEO, "1": TEXT})))
    ended = run()
    assert (ended.code, ended.result["status"]) == (0, "done")
    assert ended.files == {"walk.mp4", "Make It.txt"}
    assert (ended.out / "walk.mp4").read_bytes() == fake.files["walk.mp4"]
    assert (ended.out / "Make It.txt").read_text() == "two\nlines\n"
    assert [(file["node"], file["title"], file["type"]) for file in ended.result["files"]] == [
        ("2", "Save", "output"),
        ("1", "Make It", "text"),
    ]
    (path, queued) = fake.posts[0]
    assert path == "/prompt" and queued["prompt"] == PROMPT and queued["prompt_id"] == ended.result["prompt_id"]


def test_a_run_answered_from_the_cache_fetches_too_and_overwrites_nothing(fake: FakeComfyUI, run: Callable[..., Ended]) -> None:
    fake.on_prompt = lambda name: fake.finish(name, success({"2": VIDEO}, cached=("1", "2")))
    assert run().code == 0
    ended = run()
    assert ended.code == 0 and ended.result["cached"] == ["1", "2"]
    assert ended.files == {"walk.mp4", "walk-2.mp4"}


def test_settings_reach_the_server(fake: FakeComfyUI, run: Callable[..., Ended]) -> None:
    fake.on_prompt = lambda name: fake.finish(name, success({}))
    assert run("--set", "1.frames=20", "--set", "Make It.path=7", "--set", "Make.fps=2.5", "--set", '2.images=["1", 1]').code == 0
    prompt = fake.posts[0][1]["prompt"]
    assert prompt["1"]["inputs"] == {"frames": 20, "path": "7", "fps": 2.5} and prompt["2"]["inputs"] == {"images": ["1", 1]}


def test_an_input_that_a_node_has_not_is_refused_before_queueing(fake: FakeComfyUI, run: Callable[..., Ended]) -> None:
    ended = run("--set", "1.frams=20")
    assert ended.code == 2 and fake.posts == []
    assert "node 1 (Make It) has no input 'frams'; it has frames, fps" in ended.said


def test_a_node_that_fails_is_named_and_earlier_outputs_come(fake: FakeComfyUI, run: Callable[..., Ended]) -> None:
    fake.on_prompt = lambda name: fake.finish(name, error("2", "no room for 3 frames; use fewer\n", {"1": TEXT}))
    ended = run()
    assert ended.code == 1 and ended.files == {"Make It.txt"}
    assert "error: node 2 (Save): no room for 3 frames; use fewer\n" in ended.said


def _refusal(*errors: dict[str, Any]) -> dict[str, Any]:
    return {
        "error": {"message": "Prompt outputs failed validation", "details": ""},
        "node_errors": {"1": {"errors": list(errors)}},
    }


def _wrong(kind: str, message: str, details: str, name: str | None = None) -> dict[str, Any]:
    """One entry of node_errors, as ComfyUI words them."""
    return {"type": kind, "message": message, "details": details, "extra_info": {"input_name": name} if name else {}}


CUSTOM = ("custom_validation_failed", "Custom validation failed for node")


@pytest.mark.parametrize(
    ("errors", "sentence"),
    [
        ([_wrong(*CUSTOM, f"{name} - part 1 is odd", name) for name in ("path", "frames")], "part 1 is odd"),
        ([_wrong("required_input_missing", "Required input is missing", "vae")], "input 'vae' is missing"),
        (
            [_wrong("value_smaller_than_min", "Value 1 smaller than min of 2", "frames", "frames")],
            "input 'frames': Value 1 smaller than min of 2",
        ),
        (
            [_wrong("return_type_mismatch", "Return type mismatch", "images, A != B", "images")],
            "Return type mismatch: images, A != B",
        ),
    ],
    ids=["custom_once", "missing", "too_small", "mismatch"],
)
def test_a_refused_workflow_is_explained_node_by_node(
    fake: FakeComfyUI, run: Callable[..., Ended], errors: list[dict[str, Any]], sentence: str
) -> None:
    fake.on_prompt = lambda name: (400, _refusal(*errors))
    ended = run()
    assert (ended.code, ended.result["messages"]) == (2, ["the server refuses the workflow:", f"  node 1 (Make It): {sentence}"])


def test_an_unknown_class_names_the_way_out(fake: FakeComfyUI, run: Callable[..., Ended]) -> None:
    blame = {"type": "missing_node_type", "message": "Node 'Make It' not found.", "extra_info": {"node_id": "1"}}
    fake.on_prompt = lambda name: (400, {"error": blame, "node_errors": {}})
    ended = run()
    assert ended.code == 2 and "node 1 (Make It): the server has no class 'Make'; install or update the node pack" in ended.said


def test_a_workflow_that_would_run_in_part_is_taken_off_again(fake: FakeComfyUI, run: Callable[..., Ended]) -> None:
    def accept_in_part(name: str) -> tuple[int, Any]:
        fake.pending.append(name)
        missing = {"type": "required_input_missing", "details": "vae"}
        return 200, {"prompt_id": name, "node_errors": {"1": {"errors": [missing]}}}

    fake.on_prompt = accept_in_part
    ended = run()
    assert ended.code == 2 and "input 'vae' is missing" in ended.said
    assert fake.pending == [] and fake.posts[1] == ("/queue", {"delete": [ended.result["prompt_id"]]})


def test_an_error_of_the_server_itself(fake: FakeComfyUI, run: Callable[..., Ended]) -> None:
    fake.on_prompt = lambda name: (500, {})
    ended = run()
    assert ended.code == 1 and "HTTP 500" in ended.said


# ------------------------------------------------------------------------------------------------------------- a server that goes


def test_nobody_there(run: Callable[..., Ended]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ended = run(server=f"127.0.0.1:{free.getsockname()[1]}", timeout="30")
    assert ended.code == 3 and ended.result["seconds"] < 25 and "connection refused" in ended.said and ended.files == set()


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.0 200 OK\r\n\r\n<html>", b"HTTP/1.0 200 OK\r\n\r\n{}", b"SSH-2.0-x\r\n", b"HTTP/1.0 404 x\r\n\r\n"],
)
def test_a_server_that_is_no_comfyui(run: Callable[..., Ended], answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        ended = run(server=f"127.0.0.1:{listener.getsockname()[1]}")
    assert ended.code == 3 and "answers, but not as ComfyUI does" in ended.said and ended.said.count("\n") == 1


def test_a_server_that_dies_is_waited_for_and_given_up(fake: FakeComfyUI, run: Callable[..., Ended]) -> None:
    fake.on_prompt = lambda name: fake.when_looked_for(fake.stop)
    ended = run(timeout="1.5")
    assert ended.code == 3 and 1.5 < ended.result["seconds"] < 60
    assert "may still go on there; no output has come\n" in ended.said
    assert "does not answer (conn" in ended.said and "; waiting up to 1.5 s for it" in ended.said
    assert "has given no whole answer for 1.5 s (connection refused); check the server, or raise --timeout; a run" in ended.said


def test_a_server_that_comes_back_with_the_run_is_fetched_from(fake: FakeComfyUI, run: Callable[..., Ended]) -> None:
    fake.on_prompt = lambda name: fake.fall_silent(lambda: fake.finish(name, success({"2": VIDEO})))
    ended = run(timeout="20")
    assert ended.code == 0 and "answers again" in ended.said and ended.files == {"walk.mp4"}


def test_a_server_that_was_restarted_has_forgotten_the_run(fake: FakeComfyUI, run: Callable[..., Ended]) -> None:
    fake.on_prompt = lambda name: fake.fall_silent(fake.running.clear)
    ended = run(timeout="20")
    assert ended.code == 3 and "does not know this run any more: it was restarted; run again; no output has come" in ended.said


def test_a_run_that_somebody_deleted(fake: FakeComfyUI, run: Callable[..., Ended]) -> None:
    fake.on_prompt = lambda name: fake.when_looked_for(fake.running.clear)
    ended = run()
    assert ended.code == 1 and "somebody deleted it" in ended.said


def test_a_lost_answer_does_not_queue_twice(fake: FakeComfyUI, run: Callable[..., Ended]) -> None:
    fake.drop_answer = True
    fake.on_prompt = lambda name: fake.when_looked_for(lambda: fake.finish(name, success({"2": VIDEO})), times=2)
    ended = run(timeout="10")
    assert ended.code == 0 and [path for path, _ in fake.posts] == ["/prompt"]


# ------------------------------------------------------------------------------------------------------------------------ outputs


def test_a_download_that_breaks_off_is_begun_again(fake: FakeComfyUI, run: Callable[..., Ended]) -> None:
    fake.cut_download = True
    fake.on_prompt = lambda name: fake.finish(name, success({"2": VIDEO}))
    ended = run(timeout="10")
    assert ended.code == 0 and (ended.out / "walk.mp4").read_bytes() == fake.files["walk.mp4"] and ended.files == {"walk.mp4"}


def test_a_file_that_is_gone_fails_the_run_and_the_others_come(fake: FakeComfyUI, run: Callable[..., Ended]) -> None:
    gone = {"images": [{"filename": "gone.png", "subfolder": "", "type": "temp"}]}
    fake.on_prompt = lambda name: fake.finish(name, success({"1": gone, "2": VIDEO}))
    ended = run()
    assert ended.code == 1 and ended.files == {"walk.mp4"}
    assert "error: node 1 (Make It): the server does not give out temp/gone.png (HTTP 404)" in ended.said


def test_no_name_leads_out_of_the_folder(fake: FakeComfyUI, run: Callable[..., Ended], tmp_path: Path) -> None:
    names = ["../up.png", "..\\back.png", "/etc/root.png", "a:b.png", "..", "CON.png"]
    fake.files |= dict.fromkeys(names, b"x")
    entries = [{"filename": name, "subfolder": "../..", "type": "output"} for name in names]
    fake.on_prompt = lambda name: fake.finish(name, success({"2": {"gifs": entries}}))
    ended = run()
    assert ended.code == 0 and ended.files == {"up.png", "back.png", "root.png", "a_b.png", "output", "_CON.png"}
    assert {file.name for file in tmp_path.iterdir()} == {"prompt.json", "out"}


def test_a_folder_that_cannot_be_made_is_found_before_queueing(
    fake: FakeComfyUI, run: Callable[..., Ended], tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("")
    ended = run()
    assert ended.code == 2 and fake.posts == [] and "choose another --out" in ended.said


def test_a_text_that_does_not_fit_names_the_way_out(
    fake: FakeComfyUI, run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder goes away between the check and the output."""
    fake.on_prompt = lambda name: fake.finish(name, success({"1": TEXT}))
    prepare = Outputs.prepare
    monkeypatch.setattr(Outputs, "prepare", lambda outputs: (prepare(outputs), outputs.folder.rmdir())[0])
    ended = run()
    assert ended.code == 1 and "its text could not be written to" in ended.said
    assert "free space there or choose another --out, and run again" in ended.said


# -------------------------------------------------------------------------------------------------------------------- interrupted


def _interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_an_interrupt_before_queueing(fake: FakeComfyUI, run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Outputs, "prepare", _interrupt)
    ended = run()
    assert ended.code == 130 and fake.posts == [] and ended.result["messages"] == ["interrupted before anything was queued"]


def test_an_interrupt_while_it_tidies_up_does_not_deny_the_run(
    fake: FakeComfyUI, run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.on_prompt = lambda name: fake.finish(name, success({"2": VIDEO}))
    monkeypatch.setattr(Run, "close", _interrupt)
    ended = run()
    assert ended.code == 130 and ended.files == {"walk.mp4"}
    assert "interrupted; the run is off the server's queue; 1 output had come and is in" in ended.said


# ------------------------------------------------------------------------------------------------------------- as a whole process

PRELUDE = f"""
import sys, types
package = sys.modules["comfyui_qvg"] = types.ModuleType("comfyui_qvg")
package.__path__ = [{str(ROOT)!r}]
from comfyui_qvg.qvg.cli import main
"""


def start(
    tmp_path: Path, address: str, before: str = "", folder: str = "out", more: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    file = tmp_path / "prompt.json"
    file.write_text(json.dumps(PROMPT), encoding="utf-8")
    arguments = ["run", str(file), "--server", address, "--out", str(tmp_path / folder), *more]
    code = f"{PRELUDE}\n{before}\nsys.exit(main({arguments!r}))"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["running", "pending"])
def test_an_interrupt_takes_our_run_off_the_server_and_no_other(
    fake: FakeComfyUI, tmp_path: Path, place: str, number: signal.Signals
) -> None:
    fake.running, fake.pending = ["theirs"], ["also theirs"]
    if place == "pending":
        fake.on_prompt = fake.pending.append
    process = start(tmp_path, fake.address)
    deadline = time.monotonic() + 60
    while not fake.looks:  # then it knows that its run is there, and waits for the end
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    process.send_signal(number)  # as a shell does, whose child got it already
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted; the run " in said
    assert (fake.running, fake.pending) == (["theirs"], ["also theirs"])
    assert all(data.get("prompt_id") not in (None, "theirs") for path, data in fake.posts if path == "/interrupt")


@POSIX
def test_a_full_disk_loses_no_other_output_and_leaves_no_half_file(fake: FakeComfyUI, tmp_path: Path) -> None:
    fake.on_prompt = lambda name: fake.finish(name, success({"2": VIDEO, "1": TEXT}))
    process = start(tmp_path, fake.address, "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "output/QVG/walk.mp4 could not be written" in said and "it is still on the server: free space there or" in said
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"Make It.txt"}


@pytest.mark.parametrize("as_json", [False, True])
def test_a_piped_stdout_that_lacks_letters_of_the_folder_s_name(
    fake: FakeComfyUI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    """As on Windows, where it has those of one part of the world."""
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    fake.on_prompt = lambda name: fake.finish(name, success({"2": VIDEO}))
    process = start(tmp_path, fake.address, folder="видео", more=("--json",) if as_json else ())
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    path = tmp_path / "видео" / "walk.mp4"
    assert path.is_file()
    if as_json:
        assert json.loads(printed)["files"][0]["path"] == str(path)
    else:
        assert printed == str(path).encode("ascii", "backslashreplace").decode() + "\n"


def test_a_file_in_a_folder_is_named_as_the_server_lists_it(run: Callable[..., Ended], fake: FakeComfyUI) -> None:
    """A workflow from Linux on a server under Windows."""
    fake.inputs["required"]["path"] = ["COMBO", {"options": ["world\\model.pt"]}]
    fake.on_prompt = lambda name: fake.finish(name, success({}))
    assert run("--set", "1.path=world/model.pt").code == 0
    (queued,) = (data["prompt"] for path, data in fake.posts if path == "/prompt")
    assert queued["1"]["inputs"]["path"] == "world\\model.pt"


def test_outputs_with_names_that_this_disk_does_not_take(run: Callable[..., Ended], fake: FakeComfyUI) -> None:
    names = ["猫" * 200 + ".mp4", "a:b?.mp4", "half\ud800.mp4"]
    fake.files |= dict.fromkeys(names[:2], b"video") | {"half?.mp4": b"video"}
    outputs = {"images": [{"filename": name, "type": "output"} for name in names], "text": ["half a letter \ud800"]}
    fake.on_prompt = lambda name: fake.finish(name, success({"2": outputs}))
    ended = run()
    assert ended.code == 0, ended.said
    assert ended.files == {"猫" * 83 + ".mp4", "a_b_.mp4", "half_.mp4", "Save.txt"}
    assert (ended.out / "Save.txt").read_text(encoding="utf-8") == "half a letter \\ud800\n"
