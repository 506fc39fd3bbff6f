"""What if the limits were others: how long an answer over HTTP takes, of a large search of a deep network."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from app.actions import Service
from app.domain import ids
from app.domain.budget import Limit, resolve
from app.domain.cost import count
from app.domain.graph import ModelGraph
from app.domain.space import Assignment, SearchSpace, build_space
from app.main import create_app
from app.settings import Settings
from app.store import blobs, known
from app.store.tables import Model, Search, Trial
from app.whatif import facts
from benchmarks.budgets import DEVICE
from benchmarks.claims import Claim
from benchmarks.graph import ResNet, archive
from worker.search.evaluate import open_network

DEPTH, TRIALS, PREDICTED, CALLS = 56, 1000, 60, 200
WITHIN_MS = 100.0


def measure() -> dict[str, Any]:
    """Ask a search of a thousand trials about two hundred budgets."""
    with tempfile.TemporaryDirectory(prefix="tightfit-whatif-") as name:
        settings = Settings(data_dir=Path(name), disk_floor_bytes=0)
        with TestClient(create_app(settings)) as client:
            client.headers["Authorization"] = f"Bearer {settings.key_file.read_text().strip()}"
            graph = open_network(archive(ResNet(DEPTH), 32)).graph
            search = _filled(client.app.state.service, graph)  # type: ignore[attr-defined]
            times = [_asked(client, search, scale) for scale in np.geomspace(0.02, 1.0, CALLS)]
    return {
        "network": f"ResNet-{DEPTH}",
        "trials": TRIALS,
        "predicted": PREDICTED,
        "calls": CALLS,
        "median_ms": float(np.median(times)),
        "p95_ms": float(np.quantile(times, 0.95)),
        "worst_ms": max(times),
    }


def claims(found: dict[str, Any]) -> list[Claim]:
    """Return what the figures say."""
    figures = (
        f"{found['p95_ms']:.0f} ms (median {found['median_ms']:.0f}, worst {found['worst_ms']:.0f}; "
        f"{found['network']}, {found['trials']} trials, {found['calls']} budgets)"
    )
    text = f"what-if answers within {WITHIN_MS:.0f} ms (95th percentile)"
    return [Claim(text, found["p95_ms"] <= WITHIN_MS, figures)]


def _asked(client: TestClient, search: str, scale: float) -> float:
    """Return the milliseconds of one answer."""
    limits = [{"metric": "bops", "relative": scale}, {"metric": "weight_bytes", "relative": scale}]
    start = time.perf_counter()
    answer = client.post(f"/v1/searches/{search}/whatif", json={"limits": limits})
    assert answer.status_code == 200, answer.text
    return 1e3 * (time.perf_counter() - start)


def _filled(service: Service, graph: ModelGraph) -> str:
    """Store a search with random trials and predictions, as large as a real one's."""
    space, rng = build_space(graph, DEVICE), np.random.default_rng(0)
    sha, search = "a" * 64, ids.new_id("search")
    with service.database.writing() as session:
        blobs.record(session, sha, 1)
        model = Model(id=ids.new_id("model"), name="net", format="pt2", blob_sha=sha, bytes=1, state="ready")
        model.graph = graph.to_json()
        row = Search(
            id=search, name="large", model_id=model.id, dataset={}, device_id=DEVICE.name, device=DEVICE.to_json(),
            spec={}, limits=dict(resolve((Limit("bops", relative=1 / 8),), graph, DEVICE).limits),
        )  # fmt: skip
        row.reachable = facts(model, row)
        session.add_all([model, row])
        session.flush()
        found = [_random(space, rng) for _ in range(TRIALS)]
        costs = [count(graph, item, DEVICE).to_json() for item in found]
        for idx, (assignment, cost) in enumerate(zip(found, costs, strict=True)):
            trial = Trial(id=ids.new_id("trial"), search_id=search, idx=idx, kind="sampled", state="done")
            trial.params, trial.assignment, trial.costs = {"fidelity": "full"}, assignment.to_json(), cost
            trial.metrics = {"kl": float(rng.random()), "accuracy": float(rng.random())}
            session.add(trial)
        items = [
            {"assignment": item.to_json(), "costs": cost, "loss": float(rng.random()), "accuracy": None}
            for item, cost in zip(found[:PREDICTED], costs, strict=False)
        ]
        known.predict(session, search, items)
    return search


def _random(space: SearchSpace, rng: np.random.Generator) -> Assignment:
    keep, weights, activations = (
        {name: int(rng.choice(options)) for name, options in part.items()}
        for part in (space.keep, space.weight_bits, space.activation_bits)
    )
    return Assignment(keep, weights, activations)
