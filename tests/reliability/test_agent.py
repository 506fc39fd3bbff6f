"""A real service and a real agent, killed with SIGKILL in the middle of a job: it goes on with what is left."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.store import measuring
from app.store.blobs import Blobs
from app.store.engine import Database, connect
from app.store.tables import Agent, Measuring
from tests.app.store.databases import postgres_url
from tests.reliability.rig import ROOT, wait
from tests.worker.hardware.test_measure import stack
from worker.hardware.measuring import Bench
from worker.hardware.remote import RemoteMeasurer
from worker.job import Site

SHAPE = (((1, 64, 1, 1), "float32"),)
BENCHES = [Bench(f"net {depth}", stack(depth), SHAPE) for depth in range(1, 49)]


@contextmanager
def service(folder: Path, url: str) -> Iterator[str]:
    """Run `tightfit serve` without workers; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "TIGHTFIT_DATA_DIR": str(folder),
        "TIGHTFIT_DATABASE_URL": url,
        "TIGHTFIT_DISK_FLOOR_BYTES": "0",
    }
    call = "from app.cli import main; main()"
    command = [sys.executable, "-c", call, "serve", "--port", str(port), "--workers", "0"]
    with (folder / "service.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait(lambda: answers(address), 60, "the service's start")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def answers(address: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{address}/healthz").status_code == 200
    return False


def code(folder: Path, address: str) -> str:
    key = (folder / "api_key").read_text().strip()
    answer = httpx.post(f"{address}/v1/agents/enrolments", headers={"Authorization": f"Bearer {key}"})
    return str(answer.json()["code"])


def start_agent(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start an agent process; its log is FOLDER/agent.log."""
    command = [sys.executable, "-m", "worker.hardware.agent", "--file", str(folder / "agent.json"), *options]
    with (folder / "agent.log").open("ab") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def agent_id(database: Database) -> str:
    with database.reading() as session:
        return session.query(Agent).one().id


def the_job(database: Database) -> Measuring | None:
    with database.reading() as session:
        return session.query(Measuring).one_or_none()


def done(database: Database) -> int:
    job = the_job(database)
    return 0 if job is None else len(job.results)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_job_when_its_agent_is_killed_and_restarted_then_it_is_finished_and_no_result_is_lost(
    tmp_path: Path, kind: str
) -> None:
    file = f"sqlite:///{tmp_path / 'app.db'}"
    with nullcontext(file) if kind == "sqlite" else postgres_url() as url, service(tmp_path, url) as address:
        database = connect(url)
        agent = start_agent(tmp_path, "--url", address, "--code", code(tmp_path, address), "--name", "board")
        try:
            wait((tmp_path / "agent.json").exists, 30, "the enrolment")
            assert stat.S_IMODE((tmp_path / "agent.json").stat().st_mode) == 0o600
            answer: dict[str, Any] = {}
            measurer = RemoteMeasurer(Site(database, Blobs(tmp_path / "blobs")), agent_id(database), rounds=1000)
            asking = threading.Thread(target=lambda: answer.update(measurer.time(BENCHES)))
            asking.start()
            wait(lambda: done(database) >= 12, 60, "the first results")
            agent.kill()
            agent.wait()
            before = the_job(database)
            assert before is not None and before.state == "leased" and 12 <= len(before.results) < len(BENCHES)
            agent = start_agent(tmp_path)  # neither address nor code: it is enrolled
            asking.join(120)
            after = the_job(database)
            assert after is not None and after.state == "done"
            assert {key: after.results[key] for key in before.results} == before.results, "the first result stays"
            assert set(answer) == {bench.id for bench in BENCHES}
            assert all(found.runs == 1000 and found.min_ms <= found.p95_ms for found in answer.values())
            assert answer["net 48"].min_ms > answer["net 1"].min_ms
            assert measurer.conditions()["onnxruntime"]
            asked = time.monotonic()
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(10) == 0
            assert time.monotonic() - asked < 10
        finally:
            with suppress(ProcessLookupError):
                agent.kill()
            agent.wait()
            database.dispose()


@pytest.mark.slow
def test_agent_when_told_once_and_a_network_is_broken_then_the_others_are_measured_and_it_ends(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'app.db'}"
    with service(tmp_path, url) as address:
        database = connect(url)
        first = start_agent(tmp_path, "--url", address, "--code", code(tmp_path, address))
        wait((tmp_path / "agent.json").exists, 30, "the enrolment")
        first.terminate()
        assert first.wait(10) == 0
        blobs, agent = Blobs(tmp_path / "blobs"), agent_id(database)
        shapes = [[list(shape), dtype] for shape, dtype in SHAPE]
        files = {"good": stack(3), "broken": b"no model"}
        items = [{"id": key, "sha256": blobs.put(data), "inputs": shapes} for key, data in files.items()]
        with database.writing() as session:
            profiled = measuring.ask(session, agent, "kernels", items[:1], 1).id
            job = measuring.ask(session, agent, "time", items, 20).id
        assert start_agent(tmp_path, "--once").wait(60) == 0
        with database.reading() as session:
            kernels = session.get_one(Measuring, profiled).results["good"]["kernels"]
            row = session.get_one(Measuring, job)
        assert row.state == "done" and row.results["good"]["latency"]["runs"] == 20
        assert "InvalidProtobuf" in row.results["broken"]["problem"]["detail"]
        assert len(kernels) >= 3 and min(kernels.values()) >= 0.0
        database.dispose()


@pytest.mark.slow
def test_agent_when_removed_then_it_ends_and_says_why(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'app.db'}"
    with service(tmp_path, url) as address:
        database = connect(url)
        agent = start_agent(tmp_path, "--url", address, "--code", code(tmp_path, address))
        wait((tmp_path / "agent.json").exists, 30, "the enrolment")
        key = (tmp_path / "api_key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.delete(f"{address}/v1/agents/{agent_id(database)}", headers=headers).status_code == 204
        assert agent.wait(40) == 1
        assert "the agent was removed" in (tmp_path / "agent.log").read_text()
        database.dispose()
