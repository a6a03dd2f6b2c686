"""What a server says of a workflow that it refuses, node by node, in sentences."""

from __future__ import annotations

from typing import Any

from ..errors import shown
from .prompt import Prompt, label

Complaint = dict[str, str]  # "node": id or "", "message": a sentence
MOST_COMPLAINTS, LETTERS = 100, 500
NO_REASON = "it gives no reason; its log may"


def complaints(prompt: Prompt, answer: Any) -> list[Complaint]:
    """What is wrong, from the body of a 400 of /prompt (or of a 200 that leaves outputs out). Each thing once."""
    found: list[Complaint] = []
    nodes = answer.get("node_errors") if isinstance(answer, dict) else None
    for node, about in (nodes if isinstance(nodes, dict) else {}).items():
        errors = about.get("errors") if isinstance(about, dict) else None
        for error in errors if isinstance(errors, list) else ():
            # One wrong value is reported once for every input that the check looks at.
            complaint = {"node": str(node), "message": f"{label(prompt, str(node))}: {_sentence(error)}"}
            if complaint not in found:
                found.append(complaint)
            if len(found) == MOST_COMPLAINTS:
                return found
    return found or _about_the_whole(prompt, answer)


def _sentence(error: Any) -> str:
    if not isinstance(error, dict):
        return shown(error, LETTERS) if isinstance(error, str) and error.strip() else NO_REASON
    message = shown(error.get("message") or error.get("type") or NO_REASON, LETTERS)
    details = shown(error.get("details") or "", LETTERS)
    name = shown(_extra(error).get("input_name") or "")
    kind = error.get("type")
    if kind == "custom_validation_failed":  # "Custom validation failed for node", "path - what our check said"
        return details.removeprefix(f"{name} - ") or message
    if kind == "required_input_missing":
        return f"input {name or details!r} is missing"
    if name and details == name:  # "Value 0 smaller than min of 1", "frames"
        return f"input {name!r}: {message}"
    return f"{message}: {details}" if details else message


def _about_the_whole(prompt: Prompt, answer: Any) -> list[Complaint]:
    """What is wrong when no node is blamed."""
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        return [{"node": "", "message": _sentence(error)}]
    node = str(_extra(error).get("node_id") or "")
    if error.get("type") == "missing_node_type" and node in prompt:
        kind = prompt[node]["class_type"]
        way_out = "install or update the node pack that has it, and look for its import error in the server's log"
        return [{"node": node, "message": f"{label(prompt, node)}: the server has no class {kind!r}; {way_out}"}]
    if error.get("type") == "prompt_no_outputs":
        return [{"node": "", "message": "the workflow has no node that saves or shows something; add one, such as Save Video"}]
    return [{"node": "", "message": _sentence(error)}]


def _extra(error: dict[str, Any]) -> dict[str, Any]:
    extra = error.get("extra_info")
    return extra if isinstance(extra, dict) else {}
