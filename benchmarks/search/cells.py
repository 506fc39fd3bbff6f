"""Filling cells: each is one process's work; finished ones are read from their files."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.cells import RESULTS, cell
from benchmarks.search.judge import ALLOWED_LOSS, OURS
from benchmarks.search.plan import FRONT, Cell
from benchmarks.search.store import stored

WORKERS = 2


def fill(wanted: Sequence[Cell], workers: int = WORKERS, fresh: bool = False) -> None:
    """Fill the cells that have no result yet (`fresh`: no file here, whatever is published), in several processes of
    one thread each, under a progress bar."""
    missing = [item for item in wanted if not (is_measured(item) if fresh else is_done(item))]
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("search cells", total=len(wanted), completed=len(wanted) - len(missing))
        for name, failure in _filled(missing, workers):
            if failure:
                console.print(f"[red]{name} failed[/red]\n{failure}", markup=False)
            progress.update(task, advance=1, description=name)


def _filled(missing: Sequence[Cell], workers: int) -> Iterator[tuple[str, str]]:
    """Return (cell, failure or nothing) as they end."""
    if workers == 1:
        for item in missing:
            yield item.name, measured(item)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        running = {pool.submit(measured, item): item for item in missing}
        for ended in as_completed(running):
            yield running[ended].name, ended.result()


def is_done(item: Cell) -> bool:
    """Tell whether a cell has its result."""
    return stored(item.name) is not None


def is_measured(item: Cell) -> bool:
    """Tell whether this checkout measured a cell."""
    return (RESULTS / f"{item.name}.json").exists()


def measured(item: Cell) -> str:
    """Fill one cell; return the traceback of a failure, or nothing."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    try:
        cell(item.name, lambda: _measure(item))
    except Exception:  # one failed cell must not end the hours of the others
        return traceback.format_exc()
    return ""


def _measure(item: Cell) -> dict[str, Any]:
    from benchmarks.search import fronts, ours, rivals
    from benchmarks.search.arena import Arena, judged, polished

    if item.target == FRONT:
        return fronts.run(Arena(item.network, item.target), item.strategy, item.seed)
    runs = {
        "tightfit": ours.tightfit,
        "bits-only": ours.tightfit,
        "pruning-only": ours.tightfit,
        "tpe": rivals.tpe,
        "nsga2": rivals.nsga2,
        "grid": rivals.grid,
        "greedy": rivals.greedy,
        "greedy-joint": rivals.greedy_joint,
    }
    arena = Arena(item.network, item.target, ours.spec(item.strategy))
    found = judged(arena, runs[item.strategy], item.seed)
    if item.strategy == OURS and item.target.name in ALLOWED_LOSS and found["outcome"] == "found":
        found["polished"] = polished(arena, found)
    return {**found, "strategy": item.strategy, "float": _float(arena)}


def _float(arena: Any) -> float:
    """Return the float network's hold-out accuracy."""
    from app.domain.space import widest

    found: float = arena.scorer.score(widest(arena.goal.graph, 32), "holdout").metrics["accuracy"]
    return found


def results(wanted: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """Return the stored results by cell name."""
    found = {item.name: stored(item.name) for item in wanted}
    return {name: result for name, result in found.items() if result is not None}
