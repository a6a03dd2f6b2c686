"""A check's row as a page: one file, readable without a network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

# PLACEHOLDER: the owner fills in where rows are to be sent, an address or a page to open an issue on.
SEND_TO = ""

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1b1f24;max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}p{max-width:75ch}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #d7dce1;white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{border-bottom:2px solid #1b1f24;vertical-align:bottom}
pre{background:#f6f8fa;padding:.8rem;white-space:pre-wrap;word-break:break-all;font-size:12px}.warn{color:#b42318}
"""
_ATTENTION = {
    "preset": "cache",
    "frames": "latent frames",
    "way": "read",
    "ms": "ms",
    "ratio": "times bf16",
    "predicted_ms": "predicted ms",
    "host_ms": "host ms",
    "relative_error": "relative error",
    "peak_bytes": "peak MB beside the cache",
    "cache_bytes": "cache MB",
    "failed": "",
}
_CODING = {
    "what": "what",
    "preset": "cache",
    "frames": "latent frames",
    "ms": "ms",
    "first_ms": "first, ms",
    "gb_per_s": "GB/s",
    "share_of_copy": "share of a copy",
    "peak_bytes": "peak MB",
}
_CHECKS = {"name": "what", "error": "off by", "allowed": "allowed"}


def page(row: Mapping[str, Any]) -> str:
    """HTML of a row of `check_gpu`."""
    about = f"{row['device']}, {row['memory_gb']} GB" if row.get("memory_gb") else str(row["device"])
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items() if version)
    rehearsal = '<p class="warn">A rehearsal with small sizes: these times mean nothing.</p>' if row["rehearsal"] else ""
    parts = [
        f"<h1>QVG on {html.escape(about)}</h1>{rehearsal}",
        f"<p>{html.escape(row['date'])}, {html.escape(row['system'])}, {html.escape(versions)}; kernels: "
        f"{html.escape(row['backend'])}. {len(row['checks'])} comparisons, all within what they may be off by.</p>",
        "<h2>Attention of one layer</h2><p>Times of one call, beside a cache of 16 bits read by the fastest attention that torch "
        "has here. Predictions are those of the pack's cost model.</p>",
        _table(_ATTENTION, row["attention"]),
        "<h2>Encoding and decoding</h2>",
        _table(_CODING, row["coding"]),
        "<h2>Every kernel against torch</h2>",
        _table(_CHECKS, row["checks"]),
        f"<h2>Send us this row</h2><p>{html.escape(send_text())}</p><pre>{html.escape(json.dumps(row))}</pre>",
    ]
    return f'<!doctype html><meta charset="utf-8"><title>QVG check</title><style>{_STYLE}</style>' + "\n".join(parts) + "\n"


def send_text() -> str:
    """Where the row is wanted."""
    return (
        f"Send us this row: {SEND_TO}"
        if SEND_TO
        else "Send us this row: whoever published this copy of the pack has not filled in an address yet; add it to your report"
    )


def _table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [name for name in columns if any(name in row for row in rows)]
    head = "".join(f"<th>{html.escape(columns[name])}</th>" for name in shown)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(name, row.get(name))}</td>' for name in shown)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.endswith("_bytes"):
        return f"{value / 1e6:.1f}"
    return html.escape(f"{value:.3g}" if isinstance(value, float) else str(value))
