"""Resumable cells: a result is a JSON file under benchmarks/results; what is there is not measured again."""

from __future__ import annotations

import json
import os
import platform
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

RESULTS = Path(__file__).parent / "results"
SHARED = Path(os.environ.get("TIGHTFIT_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"


Measure = Callable[[], dict[str, Any]]


def cell(name: str, measure: Measure, code: str = "") -> dict[str, Any]:
    """Return the stored result of a cell, or measure and store it; one of another `code` version is measured again."""
    found = stored(name, code)
    if found is not None:
        return found
    about = {"python": platform.python_version(), "machine": platform.processor() or platform.machine()}
    found = {**measure(), **about, **({"code": code} if code else {})}
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{name}.json"
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(found, indent=1, sort_keys=True))
    partial.replace(file)
    return found


def fill(cells: Mapping[str, Measure], title: str, code: str = "") -> dict[str, dict[str, Any]]:
    """Measure the cells that have no result, one after the other under a progress bar; return the results by name.

    A cell that fails is printed with its traceback and left out; the others go on.
    """
    console, found = Console(), {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(title, total=len(cells))
        for name, measure in cells.items():
            progress.update(task, description=name)
            try:
                found[name] = cell(name, measure, code)
            except Exception:  # one failed cell must not end the others
                console.print(f"{name} failed\n{traceback.format_exc()}", markup=False, style="red")
            progress.update(task, advance=1)
        progress.update(task, description=title)
    return found


def stored(name: str, code: str) -> dict[str, Any] | None:
    """Return a cell's result if there is one of this code ("": of any)."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return None
    found: dict[str, Any] = json.loads(file.read_text())
    return found if found.get("code", "") == code or not code else None
