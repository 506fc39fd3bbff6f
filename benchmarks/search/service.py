"""The search as the service runs it, from rows: the same front for the same seed, and after a kill the same trials."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from app.domain import ids
from app.domain.budget import Limit, resolve
from app.store import blobs, query
from app.store import runner as rows
from app.store.blobs import Blobs
from app.store.engine import Database, connect
from app.store.migrate import upgrade
from app.store.tables import Dataset, Model, Search
from benchmarks.budgets import DEVICE
from benchmarks.cells import SHARED
from benchmarks.claims import Claim
from benchmarks.networks import NETWORKS, arrays, network
from worker.job import Site
from worker.runner import Runner

NAME, RATIO, TRIALS, ROWS = "lenet5bn_mnist", 1 / 16, 40, 4000
KILL_AT = 15
WAIT_S = 600.0
DRIVE = "import sys; from benchmarks.search.service import drive; drive(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def measure() -> dict[str, Any]:
    """Run one search twice, and once more with a kill in between; compare fronts and finished trials."""
    with tempfile.TemporaryDirectory(prefix="tightfit-same-") as name:
        folders = [Path(name) / key for key in ("first", "second", "killed")]
        searches = [queued(folder) for folder in folders]
        start = time.perf_counter()
        drive(str(folders[0]), searches[0])
        seconds = time.perf_counter() - start
        drive(str(folders[1]), searches[1])
        killed_at = _killed(folders[2], searches[2])
        drive(str(folders[2]), searches[2])
        fronts = [front(folder, search) for folder, search in zip(folders, searches, strict=True)]
        finished = [trials(folder, search) for folder, search in zip(folders, searches, strict=True)]
    return {
        "network": NAME,
        "trials": len(finished[0]),
        "killed_at": killed_at,
        "front": hashlib.sha256(fronts[0]).hexdigest(),
        "front_bytes": len(fronts[0]),
        "same_front": fronts[0] == fronts[1],
        "same_after_kill": finished[0] == finished[2],
        "same_front_after_kill": fronts[0] == fronts[2],
        "seconds": seconds,
    }


def claims(found: dict[str, Any]) -> list[Claim]:
    """Return what the figures say."""
    after = f"killed at {found['killed_at']} of {found['trials']} trials"
    return [
        Claim("same seed, same front, byte for byte", found["same_front"], f"{found['front_bytes']} bytes"),
        Claim("a killed and resumed search finishes the same trials", found["same_after_kill"], after),
    ]


def queued(folder: Path, name: str = NAME, **options: Any) -> str:
    """Make a database with a queued search of a network in a folder; return the search's id."""
    folder.mkdir(parents=True)
    upgrade(_url(folder))
    database, store = connect(_url(folder)), Blobs(folder / "blobs")
    loaded, graph = arrays(NETWORKS[name]), network(name).graph
    mean, std = json.loads((SHARED / "models" / f"{name}.json").read_text())["norm"]
    np.savez(folder / "x.npz", x=loaded["x_val"][:ROWS], y=loaded["y_val"][:ROWS].astype(np.int64))
    files = [store.put_file(SHARED / "models" / f"{name}.onnx"), store.put_file(folder / "x.npz")]
    spec = {"layout": "NHWC", "scale": 1 / 255, "mean": mean, "std": std, "role": "all", "split_seed": 0}
    model = Model(id=ids.new_id("model"), name=name, format="onnx", blob_sha=files[0][0], bytes=files[0][1])
    model.state, model.graph = "ready", graph.to_json()
    data = Dataset(id=ids.new_id("dataset"), name=name, blob_sha=files[1][0], bytes=files[1][1], spec=spec)
    data.state = "ready"
    row = Search(id=ids.new_id("search"), name=name, model_id=model.id, dataset={"all": data.id})
    limits = resolve((Limit("bops", relative=RATIO),), graph, DEVICE).limits
    row.device_id, row.device, row.limits = DEVICE.name, DEVICE.to_json(), dict(limits)
    row.spec = {"search": {"trials": TRIALS, "seed": 0, **options}, "space": {}, "export_top": 1}
    with database.writing() as session:
        for sha256, size in files:
            blobs.record(session, sha256, size)
        session.add_all([model, data])
        session.flush()
        session.add(row)
    search = row.id
    database.dispose()
    return search


def drive(folder: str, search: str, slot: int = 0) -> None:
    """Run a search to its end, as one of its runners."""
    database, store = opened(Path(folder))
    while Runner(Site(database, store), search, slot).run() == "again":
        pass
    database.dispose()


def front(folder: Path, search: str) -> bytes:
    """Return the candidates of a finished search as canonical JSON: assignments, metrics and costs by rank."""
    database, _ = opened(folder)
    with database.reading() as session:
        found = [
            {"rank": item.rank, "assignment": item.assignment, "metrics": item.metrics, "costs": item.costs}
            for item in query.candidates(session, search)
        ]
    database.dispose()
    return json.dumps(found, sort_keys=True).encode()


def trials(folder: Path, search: str) -> list[Any]:
    """Return every finished trial: number, state, assignment and metrics."""
    database, _ = opened(folder)
    with database.reading() as session:
        found = [
            [item.idx, item.state, item.assignment, item.metrics]
            for item in rows.trials(session, search)
            if item.state in ("done", "failed")
        ]
    database.dispose()
    return found


def started(folder: Path, search: str, slot: int = 0) -> subprocess.Popen[bytes]:
    """Start one runner of a search in a process group of its own, with one thread."""
    command = [sys.executable, "-c", DRIVE, str(folder), search, str(slot)]
    return subprocess.Popen(command, start_new_session=True, env={**os.environ, **THREADS})


def seconds(folder: Path, search: str) -> float:
    """Return how long a finished search took, from when it was begun."""
    database, _ = opened(folder)
    with database.reading() as session:
        row = session.get_one(Search, search)
        assert row.started_at is not None and row.finished_at is not None
        took = row.finished_at - row.started_at
    database.dispose()
    return took.total_seconds()


def _killed(folder: Path, search: str) -> int:
    """Run a search in a process of its own and kill that in the middle; return how many trials had finished."""
    process = started(folder, search)
    deadline = time.monotonic() + WAIT_S
    while process.poll() is None and time.monotonic() < deadline:
        if len(trials(folder, search)) >= KILL_AT:
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.05)
    process.wait()
    return len(trials(folder, search))


def _url(folder: Path) -> str:
    return f"sqlite:///{folder / 'app.db'}"


def opened(folder: Path) -> tuple[Database, Blobs]:
    """Return the database and the files in a folder."""
    return connect(_url(folder)), Blobs(folder / "blobs")
