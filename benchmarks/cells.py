"""Resumable cells: a result is a JSON file under benchmarks/results; what is there is not measured again."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SHARED = Path(os.environ.get("TIGHTFIT_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"


def cell(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the stored result of a cell, or measure and store it."""
    file = RESULTS / f"{name}.json"
    if file.exists():
        stored: dict[str, Any] = json.loads(file.read_text())
        return stored
    found = {**measure(), "python": platform.python_version(), "machine": platform.processor() or platform.machine()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(found, indent=1, sort_keys=True))
    partial.replace(file)
    return found
