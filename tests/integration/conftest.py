"""A real ComfyUI server with this pack in it, on the CPU. Without a ComfyUI every test here is skipped and says why.

COMFYUI_PATH names the checkout (default: comfy-cli's ~/comfy/ComfyUI), COMFYUI_PYTHON its Python (default: the virtual
environment in or beside it). COMFYUI_FRONTEND, if it is there, the folder `static` of another comfyui-frontend-package.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .client import Client

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 180


def comfyui() -> tuple[Path, Path]:
    """The checkout and its Python; skips without them."""
    home = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    if not (home / "main.py").is_file():
        pytest.skip(f"no ComfyUI at {home}; set COMFYUI_PATH to a checkout")
    places = [home / ".venv", home / "venv", home.parent / ".venv", home.parent / "venv"]
    candidates = [Path(os.environ["COMFYUI_PYTHON"])] if "COMFYUI_PYTHON" in os.environ else []
    candidates += [place / inside for place in places for inside in ("bin/python", "Scripts/python.exe")]
    python = next((path for path in candidates if path.is_file()), None)
    if python is None:
        pytest.skip(f"no virtual environment in or beside {home}; set COMFYUI_PYTHON to the Python that runs it")
    return home, python


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(base: Path) -> Iterator[Client]:
    """A server whose folders are in `base`, with the packs in base/custom_nodes and the tests' own. Ended with the `with`."""
    home, python = comfyui()
    port = _free_port()
    for folder in ("models", "custom_nodes", "input", "output", "temp", "user"):
        (base / folder).mkdir(exist_ok=True)
    # A folder of one's own begins without the picture that every ComfyUI has.
    shutil.copy(home / "input" / "example.png", base / "input")
    if not (base / "custom_nodes" / "testing").exists():
        (base / "custom_nodes" / "testing").symlink_to(Path(__file__).with_name("testing_pack"), target_is_directory=True)
    command = [str(python), "-u", str(home / "main.py"), "--cpu", "--disable-api-nodes", "--listen", "127.0.0.1"]
    command += ["--port", str(port), "--base-directory", str(base), "--database-url", f"sqlite:///{base}/user/comfyui.db"]
    command += ["--cache-classic", "--disable-auto-launch"]
    if "COMFYUI_FRONTEND" in os.environ:
        command += ["--front-end-root", os.environ["COMFYUI_FRONTEND"]]
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", **os.environ}
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=base)
    client = Client(f"http://127.0.0.1:{port}", base, process)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not client.is_up():
            assert process.poll() is None and time.monotonic() < deadline, f"the server did not start:\n{client.log()[-4000:]}"
            time.sleep(0.3)
        yield client
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The running server. Its folders are temporary; results are cached until `client.forget()`."""
    base = tmp_path_factory.mktemp("comfyui")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "ComfyUI-QVG").symlink_to(ROOT, target_is_directory=True)
    with started(base) as client:
        yield client


@pytest.fixture
def client(server: Client) -> Client:
    """The server with nothing cached."""
    server.forget()
    return server


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Folders of a server of a test's own: `with started(base) as client`."""
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / "ComfyUI-QVG").symlink_to(ROOT, target_is_directory=True)
    return tmp_path
