"""Results of cells that docs/ publishes beside a page, a line each: what the page was printed from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cells import RESULTS

DOCS = RESULTS.parents[1] / "docs"


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Return the published results by cell name; none where there is no file."""
    if not file.exists():
        return {}
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {row["name"]: row["result"] for row in rows}


def write(file: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write results, a line each, in the order of their names."""
    lines = [json.dumps({"name": name, "result": results[name]}, sort_keys=True) for name in sorted(results)]
    file.write_text("".join(f"{line}\n" for line in lines))
