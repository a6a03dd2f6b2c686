"""Files that are there whole or not at all: real processes that write at once, are killed, or meet links and full names."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from comfyui_qvg.kernels import leftovers, whole_file
from comfyui_qvg.kernels.whole_file import try_folder, written_new, written_whole

from ..helpers import ROOT

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals and permissions of POSIX")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a process was started")
BYTES = 3_000_000
# Named as packages without their own __init__: what is tried here needs no torch.
WRITER = f"""
import sys, types
for name, path in (("comfyui_qvg", {str(ROOT)!r}), ("comfyui_qvg.kernels", {str(ROOT / "kernels")!r})):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from pathlib import Path
from comfyui_qvg.kernels.whole_file import written_new, written_whole
path, how, letter = Path(sys.argv[1]), sys.argv[2], sys.argv[3].encode()
try:
    with written_whole(path) if how == "whole" else written_new([path]) as place:
        place = getattr(place, "unfinished", place)
        with place.open("wb") as file:
            file.write(letter * {BYTES // 2})
            file.flush()
            print("writing", flush=True)
            sys.stdin.readline()
            file.write(letter * {BYTES // 2})
except FileExistsError as error:
    raise SystemExit(17)
"""


@contextmanager
def writers(path: Path, how: str, letters: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes in the middle of writing one file, each full of its letter; a line lets one go on."""
    with ExitStack() as stack:
        started = []
        for letter in letters:
            command = [sys.executable, "-c", WRITER, str(path), how, letter]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            started.append(stack.enter_context(subprocess.Popen(command, text=True, **pipes)))
            stack.callback(started[-1].kill)
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == "writing\n"
        yield started


def go_on(processes: list[subprocess.Popen[str]]) -> list[int]:
    """Let all of them go on at once. -> their exit codes"""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.wait(60) for process in processes]


def put(path: Path, text: str = "new") -> None:
    with written_whole(path) as unfinished:
        unfinished.write_text(text)


def put_new(*names: Path) -> Path:
    with written_new(names) as new:
        new.unfinished.write_text("new")
    return new.path


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for before in ({}, {"a.txt": "old"}):
        for name, text in before.items():
            (tmp_path / name).write_text(text)
        for writing in (written_whole(path), written_new([tmp_path / "b.txt"])):
            with pytest.raises(KeyboardInterrupt), writing as place:
                unfinished = place if isinstance(place, Path) else place.unfinished
                assert unfinished.parent == tmp_path and unfinished.read_bytes() == b""
                unfinished.write_text("half")
                raise KeyboardInterrupt
            assert contents(tmp_path) == before
    put(path)
    assert contents(tmp_path) == {"a.txt": "new"}


def test_a_new_file_takes_the_first_free_name(tmp_path: Path) -> None:
    names = [tmp_path / f"{number}.txt" for number in range(6)]
    names[0].write_text("mine")
    names[1].mkdir()
    names[2].symlink_to(tmp_path / "nowhere")
    names[3].symlink_to(names[0])
    assert put_new(*names) == names[4]
    with pytest.raises(FileExistsError), written_new(names[:4]) as new:
        new.unfinished.write_text("new")
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{number}.txt" for number in range(5)]
    assert names[0].read_text() == "mine" and names[1].is_dir() and names[2].is_symlink() and not names[2].exists()


def test_a_file_that_was_given_up_leaves_nothing(tmp_path: Path) -> None:
    with written_new([tmp_path / "a"]) as new:
        new.given_up = True
    assert contents(tmp_path) == {}


def test_links_are_replaced_not_followed(tmp_path: Path) -> None:
    mine, link = tmp_path / "mine", tmp_path / "link"
    mine.write_text("mine")
    link.symlink_to(mine)
    # The name that files had while they were written, before each had one of its own.
    (tmp_path / "link.unfinished").symlink_to(mine)
    put(link)
    assert contents(tmp_path) == {"mine": "mine", "link": "new", "link.unfinished": "mine"}
    assert not link.is_symlink() and (tmp_path / "link.unfinished").is_symlink()


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError), written_whole(tmp_path / "folder"):
        pytest.fail("began to write")
    if os.name != "nt":
        os.mkfifo(tmp_path / "pipe")
        with written_whole(tmp_path / "pipe") as place:
            assert place == tmp_path / "pipe"
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
        with pytest.raises(FileExistsError):
            put_new(tmp_path / "pipe")


@POSIX
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002, 0o077])
def test_permissions_are_the_usual_ones(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        (tmp_path / "usual").touch()
        usual = stat.S_IMODE((tmp_path / "usual").stat().st_mode)
        assert usual == 0o666 & ~umask
        put(tmp_path / "a")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == usual
        assert stat.S_IMODE(put_new(tmp_path / "b").stat().st_mode) == usual
        (tmp_path / "a").chmod(0o640)
        put(tmp_path / "a", "again")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_a_name_that_the_disk_takes_is_taken(tmp_path: Path) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    put(tmp_path / ("x" * longest))
    put_new(tmp_path / ("y" * longest))
    assert {len(file.name) for file in tmp_path.iterdir()} == {longest}
    for refused in (written_whole(tmp_path / ("x" * (longest + 1))), written_new([tmp_path / ("y" * (longest + 1))])):
        with pytest.raises(OSError) as refusal, refused:
            pytest.fail("began to write")
        assert refusal.value.errno == errno.ENAMETOOLONG or os.name == "nt"
    assert {len(file.name) for file in tmp_path.iterdir()} == {longest}


@POSIX
def test_a_path_that_leaves_no_room_for_our_name(tmp_path: Path) -> None:
    longest = os.pathconf(tmp_path, "PC_PATH_MAX") - 1
    folder = tmp_path
    while (room := longest - len(os.fsencode(folder)) - 1 - 12) > 1:
        folder /= "d" * min(200, room - 1)
        folder.mkdir()
    for name in ("walk_1.mp4", "walk_2.mp4"):
        put_new(folder / name)
    put(folder / "walk_1.mp4", "again")
    assert contents(folder) == {"walk_1.mp4": "again", "walk_2.mp4": "new"}


@POSIX
@pytest.mark.parametrize("missing", [False, True], ids=["read-only", "missing"])
def test_a_folder_that_takes_no_files_is_named(tmp_path: Path, missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    if not missing:
        folder.mkdir()
        if os.geteuid() == 0:  # whom permissions do not stop
            monkeypatch.setattr(whole_file.os, "open", refuse(errno.EACCES))
        folder.chmod(0o500)
    for refused in (lambda: put(folder / "a"), lambda: put_new(folder / "a"), lambda: try_folder(folder)):
        with pytest.raises(OSError) as refusal:
            refused()
        assert refusal.value.errno == (errno.ENOENT if missing else errno.EACCES)
        assert Path(str(refusal.value.filename)).parent == folder


def refuse(number: int):
    def refuses(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuses


def test_a_disk_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As FAT and some shares are; no such disk can be made without an administrator."""
    monkeypatch.setattr(whole_file.os, "link", refuse(errno.EPERM))
    (tmp_path / "a").write_text("mine")
    assert put_new(tmp_path / "a", tmp_path / "b") == tmp_path / "b"
    assert contents(tmp_path) == {"a": "mine", "b": "new"}
    with monkeypatch.context() as full:
        full.setattr(whole_file.os, "replace", refuse(errno.EIO))
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            put_new(tmp_path / "c")
    assert contents(tmp_path) == {"a": "mine", "b": "new"}


@POSIX
def test_a_server_that_answers_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS: the link was made, the answer was lost, and asked again the server finds it there."""
    link = os.link

    def twice(*names: Path) -> None:
        link(*names)
        link(*names)

    monkeypatch.setattr(whole_file.os, "link", twice)
    assert put_new(tmp_path / "a", tmp_path / "b") == tmp_path / "a"
    assert contents(tmp_path) == {"a": "new"}


@POSIX
def test_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[str] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def watched(*arguments: object) -> object:
            folder = isinstance(arguments[0], int) and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            did.append(f"{name} folder" if folder else name)
            return real(*arguments)

        monkeypatch.setattr(whole_file.os, name, watched)

    for name in ("fsync", "replace", "link"):
        watch(name)
    put(tmp_path / "a")
    put_new(tmp_path / "b")
    assert did == ["fsync", "fsync folder", "replace", "fsync folder", "fsync", "fsync folder", "link", "fsync folder"]


# --------------------------------------------------------------------------------------------------------- several at once


@pytest.mark.parametrize("how", ["whole", "new"])
def test_several_processes_at_once(tmp_path: Path, how: str) -> None:
    path = tmp_path / "out"
    for _ in range(3):
        path.unlink(missing_ok=True)
        with writers(path, how, "abcd") as started:
            assert len(list(tmp_path.iterdir())) == 4
            codes = go_on(started)
        assert codes == [0] * 4 if how == "whole" else sorted(codes) == [0, 17, 17, 17]
        content = path.read_bytes()
        assert len(content) == BYTES and len(set(content)) == 1
        if how == "new":
            assert content[:1] == b"abcd"[codes.index(0) :][:1]
        assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("links", [True, False])
def test_several_threads_at_once(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:
        monkeypatch.setattr(whole_file.os, "link", refuse(errno.EPERM))
    names, ready, taken = [tmp_path / f"{number}" for number in range(9)], threading.Barrier(8), []

    def write() -> None:
        with written_new(names) as new:
            new.unfinished.write_text(str(threading.get_ident()))
            ready.wait(60)
        taken.append((new.path, str(threading.get_ident())))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path for path, _ in taken) == names[:8]
    assert all(path.read_text() == text for path, text in taken) and len(list(tmp_path.iterdir())) == 8


# ------------------------------------------------------------------------------------------------------- what killed ones left


def unfinished_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name.startswith(".qvg-unfinished-"))


@POSIX
@pytest.mark.parametrize("waited_for", [True, False], ids=["gone", "zombie"])
def test_what_a_killed_writer_left_the_next_removes(tmp_path: Path, waited_for: bool) -> None:
    if not waited_for and sys.platform != "linux":
        pytest.skip("only Linux tells a zombie from a process that runs")
    with writers(tmp_path / "out", "whole", "ab") as (killed, stopped):
        stopped.send_signal(signal.SIGSTOP)
        killed.kill()
        if waited_for:
            killed.wait(60)
        else:
            os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
        assert len(unfinished_in(tmp_path)) == 2
        put(tmp_path / "other")
        (alive,) = unfinished_in(tmp_path)
        assert f"-{stopped.pid}-" in alive
        stopped.send_signal(signal.SIGCONT)
        assert go_on([stopped]) == [0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other", "out"]
    assert (tmp_path / "out").read_bytes() == b"b" * BYTES


def leftover(folder: Path, place: str = "", process: int = 0, started: int = -1, days: float = 0) -> Path:
    """A file as a writer leaves it: by default one of this very process."""
    _, _, here, me, then, unique = leftovers.own_name().split("-")
    number = int(then) if started < 0 else started
    path = folder / f".qvg-unfinished-{place or here}-{process or me}-{number}-{unique}"
    path.write_text("half")
    os.utime(path, (time.time() - days * 86400,) * 2)
    return path


def test_only_what_nobody_writes_any_more_is_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(60)
    kept = [
        leftover(tmp_path),  # another thread's
        leftover(tmp_path, days=6),
        leftover(tmp_path, place="0" * 8, process=gone.pid),  # another host's, where this number may be somebody
        leftover(tmp_path, place="0" * 8, process=gone.pid, days=6),
        leftover(tmp_path, process=os.getppid(), started=0),  # where nothing tells when a process was started
        tmp_path / ".qvg-unfinished-notes",  # the user's own
        tmp_path / "out.unfinished",
        tmp_path / (leftovers.own_name() + ".txt"),
    ]
    for file in kept[5:]:
        file.write_text("mine")
        os.utime(file, (0, 0))
    folder, link = (tmp_path / leftovers.own_name() for _ in range(2))
    folder.mkdir()
    link.symlink_to(tmp_path / "out.unfinished")
    os.utime(folder, (0, 0))
    removed = [
        leftover(tmp_path, process=gone.pid),
        leftover(tmp_path, process=4_000_000_000),
        leftover(tmp_path, place="0" * 8, days=8),
        leftover(tmp_path, days=8),
    ]
    put(tmp_path / "out")
    assert [file.name for file in kept if not file.exists()] == []
    assert [file.name for file in removed if file.exists()] == []
    assert folder.is_dir() and link.is_symlink() and (tmp_path / "out.unfinished").read_text() == "mine"


@LINUX
def test_a_number_that_another_process_has_now(tmp_path: Path) -> None:
    """In a container that is started again programs get the numbers that they had before."""
    _, _, _, _, then, _ = leftovers.own_name().split("-")
    before = leftover(tmp_path, started=int(then) - 1)
    put(tmp_path / "out")
    assert not before.exists()


def test_the_age_is_told_by_the_folder_s_own_disk(tmp_path: Path) -> None:
    """A file server whose clock is ten days behind: what is written there now is not old."""
    fresh = leftover(tmp_path, place="0" * 8, days=10)
    leftovers.remove_leftovers(tmp_path, now=time.time() - 10 * 86400)
    assert fresh.exists()
    leftovers.remove_leftovers(tmp_path, now=time.time())
    assert not fresh.exists()


def test_a_folder_that_cannot_be_listed_is_no_reason_to_fail(tmp_path: Path) -> None:
    leftovers.remove_leftovers(tmp_path / "missing", now=0)


def test_names_are_never_the_same_and_short() -> None:
    names = {leftovers.own_name() for _ in range(100)}
    assert len(names) == 100 and max(map(len, names)) <= 70


def test_an_interrupt_right_after_the_file_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.close

    def interrupted(descriptor: int) -> None:
        real(descriptor)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", interrupted)
        with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "a"):
            pass
    assert os.listdir(tmp_path) == []
