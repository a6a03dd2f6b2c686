"""A headless Chromium driven over its own pipe (Chrome DevTools Protocol) with the standard library alone.

Needs Linux or macOS and a Chromium or Chrome: CHROMIUM_PATH, or one of the usual names on PATH.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--remote-debugging-pipe",
]
CALL_SECONDS = 120


class PageError(Exception):
    """What JavaScript threw, or what the browser refused."""


def find_chromium() -> str | None:
    """Path of the browser, or None."""
    named = os.environ.get("CHROMIUM_PATH")
    if named:
        return named if Path(named).is_file() else None
    return next((path for path in map(shutil.which, NAMES) if path), None)


@dataclass(frozen=True)
class Message:
    """One line of the page's console; `url` is the script, or the address that failed to load."""

    level: str
    text: str
    url: str = ""


class Chromium:
    """The browser process. `with Chromium(path) as browser: page = browser.open(1600, 900)`."""

    def __init__(self, path: str):
        self._profile = tempfile.mkdtemp(prefix="qvg-chromium-")
        (read_commands, self._commands), (self._answers, write_answers) = os.pipe(), os.pipe()
        # Above what the child is given, so that one dup2 cannot close the other's source.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (read_commands, write_answers)]
        with open(Path(self._profile) / "log", "wb") as log:
            actions = [(os.POSIX_SPAWN_DUP2, ends[0], 3), (os.POSIX_SPAWN_DUP2, ends[1], 4)]
            actions += [(os.POSIX_SPAWN_DUP2, log.fileno(), output) for output in (1, 2)]
            arguments = [path, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
            # A session of its own: Chromium starts a dozen processes, and all of them are to end with it.
            self._process = os.posix_spawn(path, arguments, dict(os.environ), file_actions=actions, setsid=True)
        for end in (*ends, read_commands, write_answers):
            os.close(end)
        self._next, self._results, self._arrived = 0, {}, threading.Condition()  # type: ignore[var-annotated]  # by id, as they come
        self._pages: dict[str, Page] = {}
        self._closed = ""
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._commands)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, width: int, height: int) -> Page:
        """A new, empty page of its own profile: no cookies, no stored drafts of another page."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        page.context = context
        return page

    def call(self, method: str, session: str = "", **params: Any) -> Any:
        """One command and its answer; raises PageError where the browser refuses."""
        with self._arrived:
            self._next += 1
            number = self._next
            data = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
            self._send(json.dumps(data).encode() + b"\0")
            if not self._arrived.wait_for(lambda: number in self._results or self._closed, CALL_SECONDS):
                raise PageError(f"{method}: no answer in {CALL_SECONDS} s")
            if number not in self._results:
                raise PageError(f"{method}: {self._closed}")
            answer = self._results.pop(number)
        if "error" in answer:
            raise PageError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._commands, data) :]

    def _listen(self) -> None:
        buffer = b""
        while piece := os.read(self._answers, 1 << 16):
            *lines, buffer = (buffer + piece).split(b"\0")
            for line in lines:
                self._take(json.loads(line))
        with self._arrived:
            self._closed = "the browser has ended: " + self._log()
            self._arrived.notify_all()
        os.close(self._answers)

    def _log(self) -> str:
        with contextlib.suppress(OSError):
            return (Path(self._profile) / "log").read_text(errors="replace")[-1000:]
        return ""

    def _take(self, data: dict[str, Any]) -> None:
        if "id" in data:
            with self._arrived:
                self._results[data["id"]] = data
                self._arrived.notify_all()
        elif data.get("sessionId") in self._pages:
            message = _message(data["method"], data["params"])
            if message:
                self._pages[data["sessionId"]].messages.append(message)


def _message(event: str, params: dict[str, Any]) -> Message | None:
    """What a DevTools event says to the console, if anything."""
    if event == "Runtime.consoleAPICalled":
        words = [str(part.get("value", part.get("description", part["type"]))) for part in params["args"]]
        frames = params.get("stackTrace", {}).get("callFrames") or [{}]
        return Message(params["type"], " ".join(words), frames[0].get("url", ""))
    if event == "Runtime.exceptionThrown":
        return Message("exception", _thrown(params["exceptionDetails"]), params["exceptionDetails"].get("url", ""))
    if event == "Log.entryAdded":
        return Message(params["entry"]["level"], params["entry"]["text"], params["entry"].get("url", ""))
    return None


def _thrown(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])


@dataclass
class Page:
    """One tab. Everything the page says to its console is in `messages`."""

    browser: Chromium
    session: str
    messages: list[Message] = field(default_factory=list)
    context: str = ""

    def call(self, method: str, **params: Any) -> Any:
        return self.browser.call(method, self.session, **params)

    def close(self) -> None:
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)

    def goto(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def js(self, expression: str, **values: Any) -> Any:
        """Value of an expression, awaited if it is a promise; `values` are its variables. Raises PageError with what it threw."""
        given = "".join(f"const {name} = {json.dumps(value)};" for name, value in values.items())
        source = f"(async () => {{ {given} return ({expression}); }})()"
        answer = self.call("Runtime.evaluate", expression=source, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise PageError(f"{_thrown(answer['exceptionDetails'])} in: {expression[:300]}")
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float, what: str, **values: Any) -> Any:
        """The first truthy value of the expression. Raises TimeoutError naming `what` was waited for."""
        deadline = time.monotonic() + seconds
        last: object = None
        while time.monotonic() < deadline:
            try:
                value = self.js(expression, **values)
            except PageError as error:  # between two documents there is nothing to ask
                value, last = None, error
            if value:
                return value
            time.sleep(0.25)
        raise TimeoutError(f"{what}: not in {seconds} s ({last or 'no error'}); the page says {self.messages[-5:]}")

    def click(self, element: str, seconds: float = 30, **values: Any) -> None:
        """Press and release the mouse on the middle of what the JavaScript expression `element` gives."""
        # Where it lies, twice, so that nothing moves on its way there, and only if nothing lies over it.
        place = "(() => { const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })"
        steady = (
            f"(async () => {{ const e = {element}; if (!e) return null; e.scrollIntoView?.({{block: 'nearest'}});"
            f"const first = {place}(); await new Promise((done) => setTimeout(done, 300)); const [x, y] = {place}();"
            "const same = Math.abs(x - first[0]) + Math.abs(y - first[1]) < 1;"
            "return same && e.contains(document.elementFromPoint(x, y)) ? [x, y] : null; })()"
        )
        x, y = self.wait(steady, seconds, f"an element to click, {element}", **values)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, file: Path | str, format: str = "png", quality: int | None = None) -> None:
        """A screenshot of what is visible."""
        options = {"quality": quality} if quality else {}
        Path(file).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format=format, **options)["data"]))
