"""A search whose latency limit demands measured evidence, and the delivered file timed again by another process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
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
from benchmarks.cells import SHARED
from benchmarks.networks import NETWORKS, arrays, available, network
from worker.job import Site
from worker.runner import Runner

NAME, SHARE, TRIALS, ROWS = "resnet8_cifar10", 1 / 3, 40, 4000
HOST = Path(__file__).resolve().parents[1] / "app" / "devices" / "onnxruntime-cpu.json"
AGAIN = """
import json, sys
from pathlib import Path
from worker.hardware.measuring import Bench, LocalMeasurer
files = {name: Path(path).read_bytes() for name, path in zip(("float", "delivered"), sys.argv[1:])}
benches = [Bench(name, data, (((1, 3, 32, 32), "float32"),)) for name, data in files.items()]
print(json.dumps({name: item.to_json() for name, item in LocalMeasurer(200).time(benches).items()}))
"""


def run(folder: Path | None = None) -> None:
    """Search at a third of the float file's measured latency; print what was promised and what a new process finds."""
    if not available():
        print("measured: the reference data folder (../shared/data) is absent; nothing measured")
        return
    with tempfile.TemporaryDirectory(prefix="tightfit-measured-") as name:
        show(measure(Path(name)))


def show(found: dict[str, Any]) -> None:
    """Print one row."""
    table = Table("network", "limit", "promised", "timed again", "kept", "hold-out", "outcome", "seconds")
    row = [f"{found[key]:.3f}" for key in ("limit", "promised", "again")]
    kept = "yes" if found["again"] <= found["limit"] else "NO"
    table.add_row(NAME, *row, kept, f"{found['holdout']:.4f}", found["outcome"], f"{found['seconds']:.0f}")
    Console().print(table)
    Console().print(f"8 bits take {found['integers_slower_by']:.2f} times as long as floats here")


def measure(folder: Path, agent: str | None = None) -> dict[str, Any]:
    """Run the search, files timed here or by an agent; latencies are shares of the float file's in the same rounds."""
    database, store = _database(folder), Blobs(folder / "blobs")
    search, start = _queued(database, store, folder, agent), time.perf_counter()
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


def _database(folder: Path) -> Database:
    url = f"sqlite:///{folder / 'app.db'}"
    upgrade(url)
    return connect(url)


def _queued(database: Database, store: Blobs, folder: Path, agent: str | None) -> str:
    """Store network, pictures and a queued search; return its id."""
    loaded, graph = arrays(NETWORKS[NAME]), network(NAME).graph
    mean, std = json.loads((SHARED / "models" / f"{NAME}.json").read_text())["norm"]
    np.savez(folder / "x.npz", x=loaded["x_val"][:ROWS], y=loaded["y_val"][:ROWS].astype(np.int64))
    files = [store.put_file(SHARED / "models" / f"{NAME}.onnx"), store.put_file(folder / "x.npz")]
    device = json.loads(HOST.read_text())
    asked = {"metric": "latency_ms", "relative": SHARE, "relative_to": "float", "evidence": "measured", "stat": "min"}
    spec = {"layout": "NHWC", "scale": 1 / 255, "mean": mean, "std": std, "role": "all", "split_seed": 0}
    model = Model(id=ids.new_id("model"), name=NAME, format="onnx", blob_sha=files[0][0], bytes=files[0][1])
    model.state, model.graph = "ready", graph.to_json()
    data = Dataset(id=ids.new_id("dataset"), name="cifar10", blob_sha=files[1][0], bytes=files[1][1], spec=spec)
    data.state = "ready"
    row = Search(id=ids.new_id("search"), name=NAME, model_id=model.id, dataset={"all": data.id})
    row.device_id, row.device, row.limits = device["name"], device, {"latency_ms": 1.0}
    row.spec = {"search": {"trials": TRIALS, "seed": 0}, "space": {}, "export_top": 1, "limits": [asked]}
    row.spec["agent"] = agent
    with database.writing() as session:
        for sha256, size in files:
            blobs.record(session, sha256, size)
        session.add_all([model, data])
        session.flush()
        session.add(row)
    return row.id
