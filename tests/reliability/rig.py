"""A database with one digits network in it, searches made from rows, real workers as processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app import queue
from app.domain import ids
from app.domain.budget import Limit, resolve
from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.store import blobs
from app.store.blobs import Blobs
from app.store.engine import Database, connect
from app.store.migrate import upgrade
from app.store.tables import Candidate, Dataset, Model, Search, Trial
from tests.worker.digit_files import DEVICE, SPEC

ROOT = Path(__file__).resolve().parents[2]
LIMITS = (Limit("weight_bytes", relative=0.6), Limit("bops", relative=0.5))


@dataclass(frozen=True)
class Rig:
    """A migrated database, its blobs, and a network and a dataset in them."""

    database: Database
    folder: Path
    model_id: str
    dataset_id: str
    graph: ModelGraph

    @property
    def blobs(self) -> Blobs:
        """Return the blob store."""
        return Blobs(self.folder / "blobs")

    def add_search(self, trials: int, seed: int = 0, limits: tuple[Limit, ...] = LIMITS, **options: Any) -> str:
        """Store a queued search and return its id; `options` are further ones of how hard to search.

        Its best is exported, unless `export_top` says 0, and polished only where `polish` says so: either takes longer
        than the trials do.
        """
        roles = options.pop("dataset", {"all": self.dataset_id})
        ending: dict[str, Any] = {
            "polish": bool(options.pop("polish", False)),
            "export_top": int(options.pop("export_top", 1)),
        }
        if "opset" in options:
            ending["export"] = {"opset": options.pop("opset")}
        spec = {"search": {"trials": trials, "seed": seed, **options}, "space": {}, **ending}
        row = Search(
            id=ids.new_id("search"), name="digits", model_id=self.model_id, dataset=roles,
            device_id=DEVICE.name, device=DEVICE.to_json(), spec=spec,
            limits=dict(resolve(limits, self.graph, DEVICE).limits),
        )  # fmt: skip
        with self.database.writing() as session:
            session.add(row)
        return row.id

    def add_measured(
        self, trials: int, limit: dict[str, Any], device: DeviceProfile, agent: str | None = None, export_top: int = 1
    ) -> str:
        """Store a queued search whose latency limit demands measured evidence, on a profile of this host."""
        half = Limit("weight_bytes", relative=0.5, relative_to="float")
        asked = {"metric": "latency_ms", "evidence": "measured", "stat": "min", **limit}
        spec = {
            "search": {"trials": trials, "seed": 0},
            "space": {},
            "export_top": export_top,
            "polish": False,
            "limits": [asked],
            "agent": agent,
        }
        row = Search(
            id=ids.new_id("search"), name="digits", model_id=self.model_id, dataset={"all": self.dataset_id},
            device_id=device.name, device=device.to_json(), spec=spec,
            limits={"latency_ms": 1.0, **resolve((half,), self.graph, device).limits},
        )  # fmt: skip
        with self.database.writing() as session:
            session.add(row)
        return row.id

    def enqueue(self, search_id: str, runners: int = 1) -> None:
        """Put the first slice of each of a search's runners on the queue."""
        client = queue.client(self.database)
        with self.database.writing() as session:
            for slot in range(runners):
                queue.enqueue_slice(client, session, search_id, slot)

    def search(self, search_id: str) -> Search:
        """Return the search's row."""
        with self.database.reading() as session:
            return session.get_one(Search, search_id)

    def trials(self, search_id: str) -> list[Trial]:
        """Return the search's trials by number."""
        with self.database.reading() as session:
            return list(session.scalars(sa.select(Trial).where(Trial.search_id == search_id).order_by(Trial.idx)))

    def candidates(self, search_id: str) -> list[Candidate]:
        """Return the search's candidates by rank."""
        query = sa.select(Candidate).where(Candidate.search_id == search_id).order_by(Candidate.rank)
        with self.database.reading() as session:
            return list(session.scalars(query))

    def done(self, search_id: str) -> int:
        """Return how many trials are done."""
        return sum(trial.state == "done" for trial in self.trials(search_id))

    def cancel(self, search_id: str) -> None:
        """Wish the search to end."""
        with self.database.writing() as session:
            session.get_one(Search, search_id).desired = "cancel"

    def start_worker(self, executor_id: str, **settings: str) -> subprocess.Popen[bytes]:
        """Start a worker process; its log is FOLDER/EXECUTOR_ID.log."""
        environment = {
            **os.environ,
            **settings,
            "TIGHTFIT_DATA_DIR": str(self.folder),
            "TIGHTFIT_DATABASE_URL": self.database.url,
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "worker", "--executor-id", executor_id]
        with (self.folder / f"{executor_id}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def build(url: str, folder: Path, files: Path, graph: dict[str, Any]) -> Rig:
    """Migrate the database at `url` and store the network and the dataset in `files`, both ready."""
    upgrade(url)
    database, store = connect(url), Blobs(folder / "blobs")
    model, dataset = ids.new_id("model"), ids.new_id("dataset")
    network, pictures = store.put_file(files / "net.pt2"), store.put_file(files / "digits.npz")
    with database.writing() as session:
        for sha256, size in (network, pictures):
            blobs.record(session, sha256, size)
        session.add(Model(id=model, name="net", format="pt2", blob_sha=network[0], bytes=network[1], state="ready",
                          graph=graph))  # fmt: skip
        session.add(Dataset(id=dataset, name="digits", blob_sha=pictures[0], bytes=pictures[1], state="ready",
                            spec={**SPEC, "role": "all", "split_seed": 0},
                            info={"has_labels": True, "classes": 10}))  # fmt: skip
    return Rig(database, folder, model, dataset, ModelGraph.from_json(graph))


def wait(condition: Callable[[], bool], within_s: float, what: str) -> float:
    """Wait until a condition holds; return the seconds it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within_s, f"not within {within_s:.0f} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - start
