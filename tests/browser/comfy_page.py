"""What a person does in ComfyUI's page, done by a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

from .chromium import Chromium, Message, Page

OPEN_SECONDS = 120
RUN_SECONDS = 240

# Errors that ComfyUI's own page writes on a new user's first visit, with or without this pack: text, address, why. Both patterns
# match from beginning to end.
_MISSING = r"Failed to load resource: the server responded with a status of 404 \(Not Found\)"
_POLICY = (
    r' violates the following Content Security Policy directive: "connect-src \'self\' data:"\. '
    r"The action has been blocked\."
)
_REFUSED = r"Refused to connect because it violates the document's Content Security Policy\."
_MODEL = r"https://huggingface\.co/[\w/.-]+\.(safetensors|pt)"
NOISE = (
    (_MISSING, r"/user\.css", "a style sheet that users may write"),
    (_MISSING, r"/favicon\.ico", "what a browser asks a page without an icon for, as frontend 1.43 is"),
    (_MISSING, r"/api/userdata/(user\.css|comfy\.templates\.json)", "files that users may have"),
    (_MISSING, r"/api/userdata\?dir=(workflows|subgraphs)&recurse=true&split=false&full_info=true", "folders made on first save"),
    (
        r"ComfyApp graph accessed before initialization",
        r"/assets/(settingStore|dialogService)-[\w-]+\.js",
        "the order in which the page starts",
    ),
    (
        rf"Connecting to '{_MODEL}'{_POLICY}|Fetch API cannot load {_MODEL}\. {_REFUSED}",
        r"/assets/missingModelMetadata-[\w-]+\.js",
        "models that a graph asks for and links to, looked for on the network, which --disable-api-nodes forbids",
    ),
)

_READY = "!!(window.app?.graph && window.app?.extensionManager?.command?.commands?.length && window.app.vueAppReady)"
# Notes down, every 20 ms, what the page shows while a prompt runs.
_WATCH = """(() => {
  window.watched = { previews: [], texts: [], errors: null, end: null };
  for (const type of ['execution_success', 'execution_error', 'execution_interrupted'])
    app.api.addEventListener(type, (event) => { watched.end = [type, event.detail.exception_message ?? '']; });
  const add = (list, item) => { if (list.at(-1) !== item) list.push(item); };
  setInterval(() => {
    const errors = app.extensionManager.lastNodeErrors;
    if (errors) watched.errors = JSON.parse(JSON.stringify(errors));
    for (const node of app.graph.nodes) {
      const shown = app.nodePreviewImages[node.id]?.[0];
      if (shown) add(watched.previews, node.type + ' ' + shown);
      const text = node.widgets?.find((widget) => widget.name === '$$node-text-preview')?.value;
      if (text) add(watched.texts, node.type + ': ' + text);
      const card = node.widgets?.find((widget) => widget.name === '$$qvg-card')?.element;
      const details = card?.querySelector('[data-part=details]').textContent;
      if (details) add(watched.texts, node.type + ': ' + details);
    }
  }, 20);
})()"""
# What is painted on the canvas is not in the document.
_PAINTED = """(() => {
  window.painted = new Set();
  const original = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
    painted.add(String(text));
    return original.call(this, text, ...rest);
  };
})()"""


def is_noise(message: Message, url: str) -> bool:
    """Whether ComfyUI says this by itself."""
    address = message.url.removeprefix(url)
    return any(re.fullmatch(text, message.text) and re.fullmatch(place, address) for text, place, _ in NOISE)


class ComfyPage:
    """The page of the server at `url`, open and ready."""

    def __init__(self, page: Page, url: str):
        self.page, self.url = page, url
        page.call("Page.addScriptToEvaluateOnNewDocument", source=_PAINTED)
        page.goto(url + "/")
        page.wait(_READY, OPEN_SECONDS, "ComfyUI's page")
        page.wait("app.graph.nodes.length > 0", OPEN_SECONDS, "the graph that ComfyUI opens by itself")
        page.js(_WATCH)

    def errors(self) -> list[Message]:
        """Errors and exceptions on the console, without those that ComfyUI makes by itself."""
        bad = [message for message in self.page.messages if message.level in ("error", "assert", "exception")]
        return [message for message in bad if not is_noise(message, self.url)]

    def show_templates(self, pack: str) -> None:
        """Open the template browser at the templates of a pack."""
        self.page.js("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        leaves = "[...document.querySelectorAll('[role=dialog] *')].filter((e) => !e.children.length)"
        self.page.click(f"{leaves}.find((e) => e.textContent.trim() === pack)", pack=pack)
        # Other packs' cards go, ours come, and then their pictures; one that is out of sight is taken away again.
        self.page.js("window.pictures = {}")
        self.page.wait(
            "(() => { const cards = [...document.querySelectorAll('[data-testid^=template-workflow-]')];"
            "for (const card of cards) { const picture = card.querySelector('img');"
            "  if (picture?.complete && picture.naturalWidth) pictures[card.dataset.testid] = picture.naturalWidth; }"
            "const late = cards.find((card) => !(card.dataset.testid in pictures));"
            "late?.scrollIntoView({ block: 'center' }); return cards.length > 0 && !late; })()",
            30,
            "the pack's templates with their pictures",
        )

    def templates(self) -> dict[str, int]:
        """Templates on show, and the width of each one's picture in pixels."""
        cards = "[...document.querySelectorAll('[data-testid^=template-workflow-]')]"
        shown: dict[str, int] = self.page.js(
            f"Object.fromEntries({cards}.map((e) => [e.dataset.testid.replace('template-workflow-', ''), "
            "pictures[e.dataset.testid] ?? 0]))"
        )
        return shown

    def open_template(self, name: str, nodes: int) -> None:
        """Click a template on show, and wait until its `nodes` nodes are in the graph."""
        self.page.click("document.querySelector(`[data-testid=template-workflow-${name}]`)", name=name)
        self.page.wait("app.graph.nodes.length === nodes && app.graph.nodes.some((n) => n.comfyClass?.startsWith('QVG'))",
                       30, f"the graph of {name}", nodes=nodes)  # fmt: skip

    def load(self, graph: dict[str, Any]) -> None:
        """Open a workflow as a file dropped on the page is opened."""
        self.page.js("app.loadGraphData(graph)", graph=graph)
        self.page.wait("app.graph.nodes.length === count", 30, "the graph", count=len(graph["nodes"]))

    def missing(self) -> list[str]:
        """Nodes that this ComfyUI does not have."""
        kinds: list[str] = self.page.js("app.graph.nodes.map((n) => n.type).filter((t) => !LiteGraph.registered_node_types[t])")
        return kinds

    def prompt(self) -> dict[str, Any]:
        """What the page would send to the server."""
        output: dict[str, Any] = self.page.js("(await app.graphToPrompt()).output")
        return output

    def set(self, kind: str, **values: Any) -> None:
        """Give widgets of the one node of a class other values."""
        self.page.js(
            "(() => { for (const [name, value] of Object.entries(values)) "
            "app.graph.nodes.find((n) => n.type === kind).widgets.find((w) => w.name === name).value = value; })()",
            kind=kind,
            values=values,
        )

    def widgets(self, kind: str) -> dict[str, Any]:
        """Names and values of a node's widgets."""
        found: dict[str, Any] = self.page.js(
            "Object.fromEntries(app.graph.nodes.find((n) => n.type === kind).widgets.filter("
            "(w) => !w.name.startsWith('$$')).map((w) => [w.name, w.value]))",
            kind=kind,
        )
        return found

    def press_run(self) -> None:
        self.page.js("watched.end = watched.errors = null")
        self.page.click("document.querySelector('[data-testid=queue-button]')")

    def run(self) -> dict[str, Any]:
        """Press Run and wait for the end: {previews, texts, end: [how, message]}."""
        self.press_run()
        self.page.wait("!!watched.end", RUN_SECONDS, "the end of the run")
        watched: dict[str, Any] = self.page.js("watched")
        return watched

    def node_errors(self) -> dict[str, Any]:
        """What the server refused, by node id; waits until it has."""
        self.page.wait("!!watched.errors", 30, "the server's refusal")
        errors: dict[str, Any] = self.page.js("watched.errors")
        return errors

    def painted(self) -> str:
        """All text painted on the canvas since the last call of forget_painted."""
        return " ".join(self.page.js("[...painted]"))

    def forget_painted(self) -> None:
        self.page.js("painted.clear(), app.canvas.setDirty(true, true)")

    def video(self) -> dict[str, Any]:
        """Address, width and seconds of the video on show, once it can be played."""
        ready = "[...document.querySelectorAll('video')].find((v) => v.readyState >= 2)"
        self.page.wait(f"!!{ready}", 60, "a video in the page")
        found: dict[str, Any] = self.page.js(f"(() => {{ const v = {ready}; return {{url: v.src, width: v.videoWidth, "
                                             "seconds: v.duration}; })()")  # fmt: skip
        return found

    def scale(self) -> float:
        """How large the graph is drawn; below 0.6 ComfyUI leaves out the text."""
        return float(self.page.js("app.canvas.ds.scale"))


def change_settings(url: str, **settings: Any) -> None:
    """Settings of the one user of a test server; dots in their names are written as two underscores."""
    data = {name.replace("__", "."): value for name, value in settings.items()}
    urlopen(Request(url + "/api/settings", json.dumps(data).encode(), {"Content-Type": "application/json"}), timeout=30).close()


@contextmanager
def opened(browser: Chromium, url: str, width: int = 1600, height: int = 900) -> Iterator[ComfyPage]:
    """A page of its own, closed afterwards."""
    # A new user is shown the template browser and a tour first.
    change_settings(url, Comfy__TutorialCompleted=True, Comfy__Release__Status="skipped", Comfy__RightSidePanel__IsOpen=False)
    page = browser.open(width, height)
    try:
        yield ComfyPage(page, url)
    finally:
        page.close()
