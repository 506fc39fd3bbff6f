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
from collections.abc import Mapping
from dataclasses import dataclass, field
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
from benchmarks.networks import NETWORKS, arrays, arrays_of, network
from worker.job import Site
from worker.runner import Runner

NAME, RATIO, TRIALS, ROWS = "lenet5bn_mnist", 1 / 16, 40, 4000
KILL_AT = 15
WAIT_S = 600.0
DRIVE = "import sys; from benchmarks.search.service import drive; drive(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
Arrays = tuple[Any, Any]
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def measure() -> dict[str, Any]:
    """Run one search twice, and once more with a kill in between; compare fronts and finished trials."""
    with tempfile.TemporaryDirectory(prefix="tightfit-same-") as name:
        folders = [Path(name) / key for key in ("first", "second", "killed")]
        searches = [queued(folder, Asked()) for folder in folders]
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


@dataclass(frozen=True)
class Asked:
    """What a search is asked: its network, a share of the BOPs with 8 bits everywhere, methods, options of the search,
    and rows by role (none: validation pictures for all)."""

    name: str = NAME
    ratio: float = RATIO
    methods: tuple[Any, ...] = ()
    rows: Mapping[str, Arrays] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def by_role(name: str) -> dict[str, Arrays]:
    """Return training pictures for calibration, validation pictures for decisions and test pictures as hold-out."""
    loaded = arrays_of(NETWORKS[name], ("train", "val", "test"))
    splits = {"calibration": "train", "evaluation": "val", "holdout": "test"}
    return {role: (loaded[f"x_{split}"], loaded[f"y_{split}"]) for role, split in splits.items()}


def queued(folder: Path, asked: Asked) -> str:
    """Make a database with a queued search in a folder; return the search's id."""
    folder.mkdir(parents=True)
    upgrade(_url(folder))
    database, store = connect(_url(folder)), Blobs(folder / "blobs")
    graph, name = network(asked.name).graph, asked.name
    loaded = arrays(NETWORKS[name])
    given = asked.rows or {"all": (loaded["x_val"][:ROWS], loaded["y_val"][:ROWS])}
    model = Model(id=ids.new_id("model"), name=name, format="onnx", state="ready", graph=graph.to_json())
    model.blob_sha, model.bytes = store.put_file(SHARED / "models" / f"{name}.onnx")
    data = {role: _dataset(store, folder / f"{role}.npz", name, role, pair) for role, pair in given.items()}
    row = Search(id=ids.new_id("search"), name=name, model_id=model.id)
    row.dataset = {role: item.id for role, item in data.items()}
    limits = resolve((Limit("bops", relative=asked.ratio),), graph, DEVICE).limits
    row.device_id, row.device, row.limits = DEVICE.name, DEVICE.to_json(), dict(limits)
    search = {"trials": TRIALS, "seed": 0, **asked.options}
    row.spec = {"search": search, "space": {}, "export_top": 1, "methods": list(asked.methods)}
    with database.writing() as session:
        for item in (model, *data.values()):
            blobs.record(session, item.blob_sha, item.bytes)
        session.add_all([model, *data.values()])
        session.flush()
        session.add(row)
    found = row.id
    database.dispose()
    return found


def _dataset(store: Blobs, file: Path, name: str, role: str, pair: Arrays) -> Dataset:
    """Return the record of a file with pictures and labels."""
    mean, std = json.loads((SHARED / "models" / f"{name}.json").read_text())["norm"]
    np.savez(file, x=pair[0], y=pair[1].astype(np.int64))
    spec = {"layout": "NHWC", "scale": 1 / 255, "mean": mean, "std": std, "role": role, "split_seed": 0}
    data = Dataset(id=ids.new_id("dataset"), name=f"{name}-{role}", spec=spec, state="ready")
    data.blob_sha, data.bytes = store.put_file(file)
    return data


def best(folder: Path, search: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (metrics and verification of the first candidate, the baseline's record) of a finished search."""
    database, _ = opened(folder)
    with database.reading() as session:
        first = query.candidates(session, search)[0]
        found = {"metrics": first.metrics, "verification": first.verification}, session.get_one(Search, search).baseline
    database.dispose()
    return found[0], found[1] or {}


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
