"""Tightfit as users have it, for benchmarks: a service with a worker, and an agent, each a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app.client import Client
from app.store.engine import connect
from app.store.tables import Measuring

ROOT = Path(__file__).resolve().parents[1]
MAIN = "from app.cli import main; main()"
START_S, JOB_S = 90.0, 900.0


@dataclass
class Live:
    """A running service, a client of it, and an agent that is enrolled there."""

    folder: Path
    client: Client
    agent: subprocess.Popen[bytes]
    agent_id: str

    def kill_agent_with_a_job(self) -> dict[str, int]:
        """Wait until the agent holds a job, end it by SIGKILL, start it again; return the items and how many were open.

        Raises TimeoutError when no job came.
        """
        database = connect(f"sqlite:///{self.folder / 'app.db'}")
        held = sa.select(Measuring).where(Measuring.state == "leased")

        def job() -> Measuring | None:
            with database.reading() as session:
                return session.scalar(held)

        _wait(lambda: job() is not None, JOB_S, "a job of the agent")
        self.agent.send_signal(signal.SIGKILL)
        self.agent.wait()
        left = job()
        database.dispose()
        assert left is not None, "the agent was killed while it held a job"
        self.agent = _process(self.folder, "agent", ["agent", "--file", str(self.folder / "agent.json")])
        return {"items": len(left.items), "open": len(left.items) - len(left.results)}


@contextmanager
def started(folder: Path) -> Iterator[Live]:
    """Run service, worker and agent in a folder; end them all."""
    port = _port()
    url, file = f"http://127.0.0.1:{port}", folder / "agent.json"
    service = _process(folder, "service", ["serve", "--port", str(port), "--workers", "1"])
    try:
        _wait(lambda: _answers(url), START_S, "the service's start")
        with Client(url, (folder / "api_key").read_text().strip()) as client:
            code = client.post("/v1/agents/enrolments")["code"]
            agent = _process(folder, "agent", ["agent", "--url", url, "--code", code, "--file", str(file)])
            live = Live(folder, client, agent, "")
            try:
                _wait(file.exists, START_S, "the agent's enrolment")
                live.agent_id = next(client.items("/v1/agents"))["id"]
                yield live
            finally:
                _end(live.agent)
    finally:
        _end(service)


def _port() -> int:
    """Return a port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _process(folder: Path, name: str, arguments: list[str], database: str = "") -> subprocess.Popen[bytes]:
    """Start `tightfit ARGUMENTS` on a database ("": SQLite in the folder); its log is FOLDER/NAME.log."""
    environment = {**os.environ, "TIGHTFIT_DATA_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    environment["TIGHTFIT_DATABASE_URL"] = database
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", MAIN, *arguments], cwd=ROOT, env=environment, stdout=log, stderr=log
        )


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
        return int(answer.status) == 200
    return False


def _wait(condition: Callable[[], Any], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:.0f} s: {what}")
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
