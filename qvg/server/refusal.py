"""What a server says of a workflow that it refuses, node by node, in sentences."""

from __future__ import annotations

from typing import Any

from .prompt import Prompt, label

Complaint = dict[str, str]  # "node": id or "", "message": a sentence


def complaints(prompt: Prompt, answer: Any) -> list[Complaint]:
    """What is wrong, from the body of a 400 of /prompt (or of a 200 that leaves outputs out). Each thing once."""
    found: list[Complaint] = []
    nodes = answer.get("node_errors") if isinstance(answer, dict) else None
    for node, about in (nodes if isinstance(nodes, dict) else {}).items():
        for error in about.get("errors", []):
            # One wrong value is reported once for every input that the check looks at.
            complaint = {"node": str(node), "message": f"{label(prompt, str(node))}: {_sentence(error)}"}
            if complaint not in found:
                found.append(complaint)
    return found or _about_the_whole(prompt, answer)


def _sentence(error: dict[str, Any]) -> str:
    message, details = str(error.get("message") or error.get("type") or "no reason given"), str(error.get("details") or "")
    name = str((error.get("extra_info") or {}).get("input_name") or "")
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
        return [{"node": "", "message": str(error)}] if error else []
    node = str((error.get("extra_info") or {}).get("node_id") or "")
    if error.get("type") == "missing_node_type" and node in prompt:
        kind = prompt[node]["class_type"]
        way_out = "install or update the node pack that has it, and look for its import error in the server's log"
        return [{"node": node, "message": f"{label(prompt, node)}: the server has no class {kind!r}; {way_out}"}]
    if error.get("type") == "prompt_no_outputs":
        return [{"node": "", "message": "the workflow has no node that saves or shows something; add one, such as Save Video"}]
    return [{"node": "", "message": _sentence(error)}]
