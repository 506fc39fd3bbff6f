"""A second device on the same network: what it costs after the first, and what it loses by that."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app.domain import ids
from app.domain.budget import Limit, resolve
from app.store import query
from app.store.tables import Evaluation, Fleet, Search
from benchmarks.budgets import DEVICE
from benchmarks.claims import Claim
from benchmarks.networks import network
from benchmarks.search import service

NAMES, SHARE, TRIALS = ("lenet5bn_mnist", "resnet8_cifar10"), 0.2, 60
OTHER = dataclasses.replace(
    DEVICE,
    name="multiples",
    pairs={"default": ((8, 8), (8, 4), (4, 8), (4, 4), (2, 8), (2, 4))},
    channel_multiple={"default": 4},
)
"""The second device: no 2-bit activations, channels in multiples of four."""
RATIO = 1 / 8


def measure() -> dict[str, Any]:
    """Measure every network."""
    return {"networks": {name: _network(name) for name in NAMES}}


def claims(found: dict[str, Any]) -> list[Claim]:
    """Return what the figures say of each network."""
    made = []
    for name, own in found["networks"].items():
        share = own["second"]["evaluations"] / own["first"]["evaluations"]
        figures = (
            f"{100 * share:.0f} % ({own['second']['evaluations']} after {own['first']['evaluations']}); hold-out "
            f"accuracy {own['second']['accuracy']:.3f}, from nothing {own['alone']['accuracy']:.3f} with "
            f"{own['alone']['evaluations']}"
        )
        made.append(Claim(f"{name}: a second device costs at most 20 % of the first's", share <= SHARE, figures))
    return made


def _network(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="tightfit-fleet-") as folder:
        shared, apart = Path(folder) / "shared", Path(folder) / "apart"
        first = service.queued(shared, service.Asked(name, options={"trials": TRIALS, "warm_start": True}))
        second = _beside(shared, first, name)
        alone = service.queued(apart, service.Asked(name, options={"trials": TRIALS}))
        _on_other(apart, alone, name)
        return {
            key: _run(where, search)
            for key, where, search in (("first", shared, first), ("second", shared, second), ("alone", apart, alone))
        }


def _beside(folder: Path, first: str, name: str) -> str:
    """Store a fleet's second search beside its first."""
    database, _ = service.opened(folder)
    with database.writing() as session:
        fleet = Fleet(id=ids.new_id("fleet"), name=name, spec={"share": SHARE})
        session.add(fleet)
        row = session.get_one(Search, first)
        row.fleet_id, row.place = fleet.id, 0
        other = Search(id=ids.new_id("search"), name=name, model_id=row.model_id, dataset=row.dataset, spec=row.spec)
        other.device_id, other.device, other.limits, other.fleet_id, other.place = "x", {}, {}, fleet.id, 1
        session.add(other)
    database.dispose()
    _on_other(folder, other.id, name)
    return other.id


def _on_other(folder: Path, search: str, name: str) -> None:
    """Let a search be one for the second device."""
    database, _ = service.opened(folder)
    with database.writing() as session:
        row = session.get_one(Search, search)
        row.device_id, row.device = OTHER.name, OTHER.to_json()
        row.limits = dict(resolve((Limit("bops", relative=RATIO),), network(name).graph, OTHER).limits)
    database.dispose()


def _run(folder: Path, search: str) -> dict[str, Any]:
    """Run a search; return its evaluations, seconds and the best candidate's accuracy on the hold-out pictures."""
    database, _ = service.opened(folder)
    before = _stored(database)
    service.drive(str(folder), search)
    with database.reading() as session:
        best = query.candidates(session, search)[0]
        warm = session.get_one(Search, search).warm
    made = _stored(database) - before
    database.dispose()
    return {
        "evaluations": made,
        "seconds": service.seconds(folder, search),
        "accuracy": best.metrics["holdout"]["accuracy"],
        "bops": best.costs["bops"],
        "warm": None if warm is None else {**warm, "inherited": len(warm["inherited"])},
    }


def _stored(database: Any) -> int:
    with database.reading() as session:
        return int(session.scalar(sa.select(sa.func.count()).select_from(Evaluation)) or 0)
