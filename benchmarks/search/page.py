"""docs/search.md and its plots, written from the cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.networks import NETWORKS
from benchmarks.search import report
from benchmarks.search.store import ROOT

DOCS = ROOT / "docs"
HEAD = """# The search against its rivals

Written by `python -m benchmarks search --page` from what `python -m benchmarks search` measured.
"""


def write(found: Sequence[dict[str, Any]]) -> None:
    """Write the page."""
    parts = [HEAD]
    for network in reversed(NETWORKS):
        rows = report.accuracy_rows(found, network)
        if rows:
            parts += [f"## {network}: hold-out accuracy in points (seeds' spread)\n", table(rows)]
    claims = [["claim", "verdict", "figures"]]
    claims += [[item.text, report.VERDICTS[item.holds], item.figures] for item in report.all_claims(found)]
    parts += ["## What is claimed\n", table(claims)]
    (DOCS / "search.md").write_text("\n".join(parts))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the first row its header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""])
