"""What a benchmark claims, judged by its results, and Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

VERDICTS: Mapping[bool | None, str] = {True: "holds", False: "MISSES", None: "not measured"}


@dataclass(frozen=True)
class Claim:
    """One thing claimed: does it hold (None: not measured yet), and the figures."""

    text: str
    holds: bool | None
    figures: str


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the first row its header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""])


def judged(claims: Sequence[Claim], command: str) -> list[str]:
    """Return the table of what was measured, and how many claims were not; `command` measures those."""
    rows = [[item.text, VERDICTS[item.holds], item.figures] for item in claims if item.holds is not None]
    left = len(claims) - len(rows)
    said = [f"Not measured yet: {left} of {len(claims)} claims; `{command}` goes on from here.\n"]
    return [table([["claim", "verdict", "figures"], *rows]), *(said if left else [])]
