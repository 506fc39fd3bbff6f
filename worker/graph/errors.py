"""The typed refusal of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MAX_NODES_TOLD = 50


class NetworkRefused(Exception):
    """A network that will not be read: `slug` names the problem, `errors` lists where it was found."""

    def __init__(self, slug: str, detail: str, errors: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(f"{slug}: {detail}")
        self.slug = slug
        self.detail = detail
        self.errors = list(errors)


def unsupported(counts: dict[str, int], nodes: Sequence[tuple[str, str]]) -> NetworkRefused:
    """Return the refusal for operators the table does not know: counts by type, and (node, type) pairs."""
    listed = ", ".join(f"{name} ({count}x)" for name, count in sorted(counts.items()))
    errors = [{"pointer": f"/graph/{node}", "code": "unsupported-operator", "detail": kind} for node, kind in nodes]
    more = f" (the first {MAX_NODES_TOLD} nodes are named)" if len(errors) > MAX_NODES_TOLD else ""
    detail = f"operators that tightfit does not read yet: {listed}{more}"
    return NetworkRefused("unsupported-operator", detail, errors[:MAX_NODES_TOLD])
