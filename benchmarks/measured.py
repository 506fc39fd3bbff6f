"""Searches whose latency limit demands measured evidence, and the delivered file timed again by another process.

Two cells: the worker's own process times the files; and everything as users have it (`tightfit serve` with a worker, a
`tightfit agent`, all of it over HTTP), the agent killed once while it holds a job, and started again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from app.domain import ids
from app.store import blobs, query
from app.store.blobs import Blobs
from app.store.engine import Database, connect
from app.store.migrate import upgrade
from app.store.tables import Dataset, Model, Search
from benchmarks.cells import SHARED, cell
from benchmarks.live import Live, started
from benchmarks.networks import NETWORKS, arrays, available, network
from worker.job import Site
from worker.runner import Runner

NAME, SHARE, TRIALS, ROWS = "resnet8_cifar10", 1 / 3, 40, 4000
HOST = Path(__file__).resolve().parents[1] / "app" / "devices" / "onnxruntime-cpu.json"
ASKED = {"metric": "latency_ms", "relative": SHARE, "relative_to": "float", "evidence": "measured", "stat": "min"}
AGAIN = """
import json, sys
from pathlib import Path
from worker.hardware.measuring import Bench, LocalMeasurer
files = {name: Path(path).read_bytes() for name, path in zip(("float", "delivered"), sys.argv[1:])}
benches = [Bench(name, data, (((1, 3, 32, 32), "float32"),)) for name, data in files.items()]
print(json.dumps({name: item.to_json() for name, item in LocalMeasurer(200).time(benches).items()}))
"""


def run() -> None:
    """Search at a third of the float file's measured latency, both ways; print what was promised and what was found."""
    if not available():
        print("measured: the reference data folder (../shared/data) is absent; nothing measured")
        return
    ways = {"here": measure, "through an agent": through_agent}
    found = {name: cell(f"measured-{name.replace(' ', '-')}", partial(in_folder, way)) for name, way in ways.items()}
    show(found)


def in_folder(way: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Measure in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="tightfit-measured-") as name:
        return way(Path(name))


def show(found: dict[str, dict[str, Any]]) -> None:
    """Print one row per way of timing."""
    table = Table("timed", "limit", "promised", "again", "kept", "hold-out", "seconds")
    for name, row in found.items():
        shares = [f"{row[key]:.3f}" for key in ("limit", "promised", "again")]
        kept = "yes" if row["again"] <= row["limit"] and row["outcome"] == "feasible" else "NO"
        table.add_row(name, *shares, kept, f"{row['holdout']:.4f}", f"{row['seconds']:.0f}")
    Console().print(f"{NAME}: latency as a share of the float file's, timed in the same rounds", table, sep="\n")
    for name, row in found.items():
        Console().print(
            f"{name}: {row['outcome']}, 8 bits take {row['integers_slower_by']:.2f} times as long as floats"
        )
        if killed := row.get("killed"):
            print(f"{name}: killed once, {killed['open']} of {killed['items']} files of its job not timed yet")


def measure(folder: Path) -> dict[str, Any]:
    """Run the search in this process, files timed here; latencies are shares of the float file's in the same rounds."""
    database, store = _database(folder), Blobs(folder / "blobs")
    search, start = _queued(database, store, folder), time.perf_counter()
    while Runner(Site(database, store), search).run() == "again":
        pass
    seconds = time.perf_counter() - start
    with database.reading() as session:
        row = session.get_one(Search, search)
        best = query.candidates(session, search)[0]
        delivered = next(item for item in query.artefacts(session, best.id) if item.kind == "onnx")
    budget, facts = best.budget[0], row.measured or {}
    again = retimed(SHARED / "models" / f"{NAME}.onnx", store.path(delivered.blob_sha))
    database.dispose()
    return {
        "limit": SHARE,
        "promised": budget["value"] / facts["float_ms"],
        "again": again,
        "holdout": best.metrics["holdout"]["accuracy"],
        "outcome": row.outcome,
        "integers_slower_by": facts["integers_slower_by"],
        "seconds": seconds,
    }


def retimed(float_file: Path, delivered: Path) -> float:
    """Return the delivered file's least latency as a share of the uploaded float file's, timed by a new process."""
    command = [sys.executable, "-c", AGAIN, str(float_file), str(delivered)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return float(found["delivered"]["min_ms"] / found["float"]["min_ms"])


def through_agent(folder: Path) -> dict[str, Any]:
    """Run the search on a service whose agent is killed once while it holds a job; latencies as in `measure`."""
    with started(folder) as live:
        model = live.client.push_model(SHARED / "models" / f"{NAME}.onnx", NAME)
        data = live.client.push_dataset(folder / "x.npz", "cifar10", _pictures(folder / "x.npz"))
        start = time.perf_counter()
        search = live.client.create_search(
            {
                "name": NAME,
                "model_id": model["id"],
                "dataset": {"all": data["id"]},
                "device_id": live.client.find("devices", "onnxruntime-cpu")["id"],
                "limits": [ASKED],
                "search": {"trials": TRIALS, "seed": 0},
                "export_top": 1,
                "agent": live.agent_id,
            }
        )
        killed = live.kill_agent_with_a_job()
        ended = live.client.wait_search(search["id"])
        return {**_delivered(live, ended), "seconds": time.perf_counter() - start, "killed": killed}


def _delivered(live: Live, search: dict[str, Any]) -> dict[str, Any]:
    """Download what a finished search found best, and time it again."""
    best = live.client.get(f"/v1/candidates/{live.client.candidates(search['id'])[0]['id']}")
    chosen = next(item for item in best["artefacts"] if item["kind"] == "onnx")
    file = live.client.download(chosen["id"], live.folder / "delivered.onnx")
    budget = next(item for item in best["budget"] if item["metric"] == "latency_ms")
    assert (budget["evidence"], search["measured"]["where"]) == ("measured", live.agent_id), "timed by the agent"
    return {
        "limit": SHARE,
        "promised": budget["value"] / search["measured"]["float_ms"],
        "again": retimed(SHARED / "models" / f"{NAME}.onnx", file),
        "holdout": best["metrics"]["holdout"]["accuracy"],
        "outcome": search["outcome"],
        "integers_slower_by": search["measured"]["integers_slower_by"],
    }


def _pictures(file: Path) -> dict[str, Any]:
    """Write the pictures of a search; return how they are to be read."""
    loaded = arrays(NETWORKS[NAME])
    mean, std = json.loads((SHARED / "models" / f"{NAME}.json").read_text())["norm"]
    np.savez(file, x=loaded["x_val"][:ROWS], y=loaded["y_val"][:ROWS].astype(np.int64))
    return {"layout": "NHWC", "scale": 1 / 255, "mean": mean, "std": std}


def _database(folder: Path) -> Database:
    url = f"sqlite:///{folder / 'app.db'}"
    upgrade(url)
    return connect(url)


def _queued(database: Database, store: Blobs, folder: Path) -> str:
    """Store network, pictures and a queued search; return its id."""
    graph, spec = network(NAME).graph, _pictures(folder / "x.npz")
    spec |= {"role": "all", "split_seed": 0}
    files = [store.put_file(SHARED / "models" / f"{NAME}.onnx"), store.put_file(folder / "x.npz")]
    device = json.loads(HOST.read_text())
    model = Model(id=ids.new_id("model"), name=NAME, format="onnx", blob_sha=files[0][0], bytes=files[0][1])
    model.state, model.graph = "ready", graph.to_json()
    data = Dataset(id=ids.new_id("dataset"), name="cifar10", blob_sha=files[1][0], bytes=files[1][1], spec=spec)
    data.state = "ready"
    row = Search(id=ids.new_id("search"), name=NAME, model_id=model.id, dataset={"all": data.id})
    row.device_id, row.device, row.limits = device["name"], device, {"latency_ms": 1.0}
    row.spec = {"search": {"trials": TRIALS, "seed": 0}, "space": {}, "export_top": 1, "limits": [ASKED]}
    with database.writing() as session:
        for sha256, size in files:
            blobs.record(session, sha256, size)
        session.add_all([model, data])
        session.flush()
        session.add(row)
    return row.id
