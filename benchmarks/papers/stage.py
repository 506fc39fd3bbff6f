"""Training stages of a search, run as the service runs it: what they add to the best network of a hard budget.

Training pictures are calibration rows, validation pictures decide, test pictures are the hold-out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from app.domain import methods
from benchmarks.cells import Measure
from benchmarks.claims import Claim
from benchmarks.networks import network
from benchmarks.papers.further import trained_on
from benchmarks.papers.kind import Found, Kind, Rows
from benchmarks.papers.subjects import training_rows
from benchmarks.search import service

NAME, RATIO, LEAST = "resnet8_cifar10", 1 / 32, 5.0
ABOUT = """
A search of resnet8_cifar10 as the service runs it, from rows, at 1/32 of the BOPs with 8 bits everywhere: 40 trials,
polish, then one method: six epochs of 45,000 training pictures as calibration rows, half distillation, half labels.
5,000 validation pictures decide, 10,000 test pictures are the hold-out. Straight-through training is the control of the
other methods; the float network, trained further on labels for as many steps, is that of the float network.
"""
FURTHER = "float"
METHODS: Mapping[str, type[Any]] = {kind.name: kind for kind in (methods.StraightThrough, methods.RelaxedQuantization)}
HOW = methods.Training(epochs=6, rows=45_000, batch=64, rate=3e-3, labels=0.5, shift=1, mirror=True)


def measure(method: str) -> dict[str, Any]:
    """Return hold-out accuracies in points of one search: float, polished and trained; and how long training took."""
    asked = methods.to_json(METHODS[method](HOW))
    with tempfile.TemporaryDirectory(prefix="tightfit-stage-") as name:
        folder = Path(name) / "service"
        search = service.queued(folder, service.Asked(NAME, RATIO, methods=(asked,), rows=service.by_role(NAME)))
        service.drive(str(folder), search)
        best, baseline = service.best(folder, search)
    (step,) = best["metrics"]["training"]["steps"]
    holdout = {key: 100 * found["accuracy"] for key, found in step["holdout"].items()}
    return {
        "method": method,
        "kept": step["kept"],
        "searched": holdout["before"],
        "trained": holdout["after"],
        "float": 100 * baseline["holdout"]["accuracy"],
        "verified": best["verification"],
        "losses": step["losses"],
        "seconds": step["seconds"],
    }


def further() -> dict[str, Any]:
    """Return the hold-out accuracy of the float network, trained on labels for the same steps."""
    torch.set_num_threads(1)
    _, data, _ = training_rows(NAME, HOW.rows)
    net = trained_on(network(NAME).folded, data["calibration"], HOW)
    held, right = data["holdout"], 0
    with torch.no_grad():
        for batch, labels in zip(held.batches(500), held.labels.split(500), strict=True):
            right += int((net(*batch).argmax(1) == labels).sum())
    return {"method": "float", "trained": 100 * right / len(held)}


def parts() -> dict[str, Measure]:
    """Return one part per method, and the float network trained further."""
    return {**{name: partial(measure, name) for name in METHODS}, FURTHER: further}


def rows(found: Found) -> Rows:
    """Return hold-out accuracies in points."""
    told = [["method", "float", "the search's answer", "trained", "gain", "minutes"]]
    for name in METHODS:
        if name in found:
            item = found[name]
            points = [f"{item[key]:.2f}" for key in ("float", "searched", "trained")]
            told.append([name, *points, f"{item['trained'] - item['searched']:+.2f}", f"{item['seconds'] / 60:.0f}"])
    if FURTHER in found:
        told.append(["float network, trained further", "", "", f"{found[FURTHER]['trained']:.2f}", "", ""])
    return told


def claims(found: Found) -> list[Claim]:
    """Return what is claimed of each method."""
    return [_claim(name, found.get(name)) for name in METHODS]


def _claim(name: str, item: Mapping[str, Any] | None) -> Claim:
    text = f"{name}: at least {LEAST:.0f} points above the post-training answer at 1/32"
    if item is None:
        return Claim(text, None, "-")
    gain = item["trained"] - item["searched"]
    figures = f"{gain:+.2f} ({item['searched']:.2f} to {item['trained']:.2f}, {item['verified']})"
    return Claim(text, gain >= LEAST and item["kept"], figures)


KIND = Kind("stage", "Training as a stage of a search", ABOUT, "stage 1", parts, rows, claims)
