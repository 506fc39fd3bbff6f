"""Random kill -9 of workers, of the service and of trial children, watched by an oracle outside of all of them.

What was acknowledged is written to a journal before anything else happens, so that a campaign that is stopped goes on
where it was: same folder, same counts.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from app.domain.lifecycle import SearchState
from app.settings import Settings
from app.store.tables import Dataset, Evaluation, Event, Search, Trial
from tests.reliability.rig import ROOT, Rig, build, wait
from tests.worker.digit_files import SPEC, write_files
from worker.sandbox import Child

Json = dict[str, Any]
LIVE, TRIALS, END_S, CHILD_S = 2, 4, 600.0, 5.0


@dataclass
class Journal:
    """What was asked, acknowledged and killed, one JSON object a line, synced before the next step."""

    file: Path
    lines: list[Json] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.file.exists():
            self.lines = [json.loads(line) for line in self.file.read_text().splitlines() if line.endswith("}")]

    def note(self, **fields: Any) -> None:
        """Append a line."""
        self.lines.append(fields)
        with self.file.open("a") as handle:
            handle.write(json.dumps(fields) + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def kills(self) -> Counter[str]:
        """Return how many of each kind were killed."""
        return Counter(line["kill"] for line in self.lines if "kill" in line)

    def acknowledged(self) -> dict[str, str]:
        """Return the search of each idempotency key that was answered."""
        return {line["key"]: line["search"] for line in self.lines if "search" in line}

    def unanswered(self) -> list[str]:
        """Return the keys that were asked and never answered."""
        known = self.acknowledged()
        return [line["asked"] for line in self.lines if "asked" in line and line["asked"] not in known]

    def priorities(self) -> dict[str, int]:
        """Return the last priority that was acknowledged, by search."""
        return {line["of"]: line["priority"] for line in self.lines if "priority" in line}


class Campaign:
    """A service, two workers, and whoever kills them."""

    def __init__(self, folder: Path, url: str, seed: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.url = folder, url
        self.journal = Journal(folder / "journal.jsonl")
        self.random = random.Random(seed + len(self.journal.lines))
        self.left = threading.Event()
        self.rig = self._rig()
        self.port = _free_port()
        self.processes = {name: self._start(name) for name in ("api", "w0", "w1")}
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)

    def _rig(self) -> Rig:
        kept = self.folder / "rig.json"
        files = write_files(self.folder)
        if not kept.exists():
            with Child() as child:
                graph = child.call("inspect", {"path": str(files / "net.pt2")}, 120)["graph"]
                read = {"path": str(files / "digits.npz"), "spec": {**SPEC, "role": "all", "split_seed": 0}}
                info = child.call("inspect_dataset", read, 120)
            made = build(self.url, self.folder, files, graph)
            with made.database.writing() as session:
                session.get_one(Dataset, made.dataset_id).info = info
            kept.write_text(json.dumps({"model": made.model_id, "dataset": made.dataset_id, "graph": graph}))
            made.database.dispose()
        from app.domain.graph import ModelGraph
        from app.store.engine import connect

        told = json.loads(kept.read_text())
        graph = ModelGraph.from_json(told["graph"])
        return Rig(connect(self.url), self.folder, told["model"], told["dataset"], graph)

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        settings = {
            "TIGHTFIT_DATA_DIR": str(self.folder), "TIGHTFIT_DATABASE_URL": self.url, "TIGHTFIT_DISK_FLOOR_BYTES": "0",
            "TIGHTFIT_WORKER_SILENCE_S": "10", "TIGHTFIT_SLICE_S": "20", "OMP_NUM_THREADS": "1",
            "TIGHTFIT_REQUESTS_PER_S": "0",
        }  # fmt: skip
        words = ["-m", "worker", "--executor-id", name]
        if name == "api":
            code = "from app.cli import main; main()"
            words = ["-c", code, "serve", "--workers", "0", "--port", str(self.port)]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, env={**os.environ, **settings}, stdout=log, stderr=log
            )

    def run(self, wanted: Mapping[str, int], within_s: float, tell: Callable[[int], object] = lambda _: None) -> bool:
        """Kill until everything wanted was killed; return False where the time was over, or `left` set, first.

        `tell` hears how many were killed.
        """
        end = time.monotonic() + within_s
        while (missing := self._missing(wanted)) and time.monotonic() < end and not self.left.is_set():
            tell(self.journal.kills().total())
            self._submit()
            # long enough that trials get done between two kills, short enough that most kills meet one under way
            self.left.wait(self.random.choice((self.random.uniform(0.05, 0.6), self.random.uniform(1.0, 4.0))))
            self._kill(self.random.choices(list(missing), weights=list(missing.values()))[0])
        return not self._missing(wanted)

    def _missing(self, wanted: Mapping[str, int]) -> dict[str, int]:
        kills = self.journal.kills()
        return {kind: count - kills[kind] for kind, count in wanted.items() if count > kills[kind]}

    def _kill(self, kind: str) -> None:
        if kind == "child":
            self._kill_child()
            return
        name = "api" if kind == "api" else self.random.choice(["w0", "w1"])
        self.processes[name].kill()
        self.processes[name].wait()
        self.journal.note(kill=kind)
        self.processes[name] = self._start(name)

    def _kill_child(self) -> None:
        """Kill one of the workers' children, once there is one: they come and go with a search's trials."""
        end = time.monotonic() + CHILD_S
        while not (children := self._children()) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(self.random.uniform(0.0, 0.5))
        if children := self._children():
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(children), signal.SIGKILL)
                self.journal.note(kill="child")

    def _children(self) -> list[int]:
        """Return the process ids of the workers' children."""
        found = []
        for name in ("w0", "w1"):
            with suppress(OSError):
                pid = self.processes[name].pid
                found += [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    found += [int(word) for word in (thread / "children").read_text().split()]
        return sorted(set(found))

    def _submit(self) -> None:
        """Ask again what was not answered, else for a search where too few are under way; sometimes reorder one."""
        with self.rig.database.reading() as session:
            states = {row.id: row.state for row in session.execute(sa.select(Search.id, Search.state))}
        live = [key for key, state in states.items() if not SearchState(state).is_finished]
        keys = self.journal.unanswered()
        if not keys and len(live) < LIVE:
            keys = [f"k-{len(self.journal.lines)}"]
            self.journal.note(asked=keys[0])
        if keys:
            self._forget()
        for key in keys:
            if (search := self._ask(key)) is not None:
                self.journal.note(key=key, search=search)
        if live and self.random.random() < 0.1:
            search, priority = self.random.choice(live), self.random.randint(1, 5)
            answer = self._post(f"/v1/searches/{search}/priority", {"priority": priority}, None)
            if answer is not None and answer.status_code == 200:
                self.journal.note(of=search, priority=priority)

    def _forget(self) -> None:
        """Drop stored measurements: searches on one network and one dataset would soon need no child for a trial."""
        with suppress(sa.exc.OperationalError), self.rig.database.writing() as session:
            session.execute(sa.delete(Evaluation))

    def _ask(self, key: str) -> str | None:
        """Send the request of a key; return the search, or None where no answer came."""
        body = {
            "name": key, "model_id": self.rig.model_id, "dataset": {"all": self.rig.dataset_id},
            "device_id": "generic-npu", "limits": [{"metric": "bops", "relative": 0.5}], "polish": False,
            "search": {"trials": TRIALS, "seed": int(key[2:]), "warm_start": False}, "export_top": 0,
        }  # fmt: skip
        answer = self._post("/v1/searches", body, key)
        if answer is None or answer.status_code >= 500:
            return None
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def _post(self, path: str, body: Json, key: str | None) -> httpx.Response | None:
        token = Settings(data_dir=self.folder).key_file
        if not token.exists():
            return None
        headers = {"Authorization": f"Bearer {token.read_text().strip()}"}
        with suppress(httpx.HTTPError):
            return self.http.post(path, json=body, headers=headers | ({"Idempotency-Key": key} if key else {}))
        return None

    def settle(self) -> bool:
        """Wait until everything that was asked is answered and every search has ended; False once `left` is set."""
        known = self.rig
        self._wait(self._is_answered, 120, "every request answered")
        self._wait(self._is_up, 120, "a service behind the last kill")

        def ended() -> bool:
            with known.database.reading() as session:
                return session.scalar(sa.select(sa.func.count()).where(Search.finished_at.is_(None))) == 0

        self._wait(ended, END_S, "every search ended")
        return not self.left.is_set()

    def _wait(self, condition: Callable[[], bool], within_s: float, what: str) -> None:
        wait(lambda: self.left.is_set() or condition(), within_s, what)

    def _is_up(self) -> bool:
        with suppress(httpx.HTTPError):
            return self.http.get("/readyz").status_code == 200
        return False

    def _is_answered(self) -> bool:
        for key in self.journal.unanswered():
            if (search := self._ask(key)) is not None:
                self.journal.note(key=key, search=search)
        return not self.journal.unanswered()

    def verdict(self) -> Json:
        """Compare the tables with the journal; raise AssertionError for anything lost, doubled or inconsistent."""
        known = self.journal.acknowledged()
        replayed = {key: self._ask(key) for key in known}
        assert replayed == known, "a repeated request was answered otherwise"
        with self.rig.database.reading() as session:
            searches = {row.id: row for row in session.scalars(sa.select(Search))}
            assert set(searches) == set(known.values()), "searches lost, or made twice"
            for search in searches.values():
                _check_search(session, search)
            for key, priority in self.journal.priorities().items():
                assert searches[key].priority == priority, f"{key}: an acknowledged priority was lost"
            trials = session.scalar(sa.select(sa.func.count()).select_from(Trial))
            if self.url.startswith("sqlite"):
                assert session.scalar(sa.text("PRAGMA integrity_check")) == "ok"
        ends = Counter(row.state for row in searches.values())
        return {"kills": dict(self.journal.kills()), "searches": dict(ends), "trials": trials, "lost": 0, "doubled": 0}

    def stop(self) -> None:
        """Kill what runs."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.http.close()
        self.rig.database.dispose()


def _check_search(session: sa.orm.Session, search: Search) -> None:
    """Assert that a search ended, its events have no gap, and each trial that finished did so once."""
    assert search.state in ("completed", "failed"), f"{search.id} is {search.state}"
    assert search.state == "completed" or (search.error or {}).get("type"), f"{search.id} failed without a name"
    found = list(session.scalars(sa.select(Event).where(Event.search_id == search.id).order_by(Event.seq)))
    assert [row.seq for row in found] == list(range(1, search.event_seq + 1)), f"{search.id}: events with gaps"
    told = Counter(row.payload["idx"] for row in found if row.kind == "trial")
    trials = list(session.scalars(sa.select(Trial).where(Trial.search_id == search.id)))
    assert all(trial.state != "running" for trial in trials), f"{search.id}: a trial still runs"
    assert max(told.values(), default=1) == 1, f"{search.id}: a trial finished twice"
    done = {trial.idx for trial in trials if trial.state == "done"}
    assert done <= set(told), f"{search.id}: a trial finished without being told"
    ends = [row for row in found if row.kind == "state" and row.payload["state"] in ("completed", "failed")]
    assert len(ends) == 1, f"{search.id} ended {len(ends)} times"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
