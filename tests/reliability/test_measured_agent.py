"""A search that demands measured latency through an agent in its own process over HTTP, which is killed on the way."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.store.tables import Measuring
from tests.reliability.rig import Rig, build, wait
from tests.reliability.test_agent import agent_id, code, service, start_agent
from tests.worker.test_measured import HOST, LOOSE
from worker.job import Site
from worker.runner import Runner


def rig_jobs(rig: Rig) -> int:
    """Return how many jobs an agent has taken."""
    with rig.database.reading() as session:
        taken = sa.select(sa.func.count()).select_from(Measuring).where(Measuring.state != "queued")
        return session.scalar(taken) or 0


@pytest.mark.slow
def test_measured_search_when_its_agent_is_killed_and_restarted_then_candidates_are_measured_there(
    tmp_path: Path, files: Path, picture: dict[str, Any]
) -> None:
    url = f"sqlite:///{tmp_path / 'app.db'}"
    rig = build(url, tmp_path, files, picture)
    with service(tmp_path, url) as address:
        agent = start_agent(tmp_path, "--url", address, "--code", code(tmp_path, address))
        try:
            wait((tmp_path / "agent.json").exists, 30, "the enrolment")
            search = rig.add_measured(8, LOOSE, HOST, agent_id(rig.database))
            runner = Runner(Site(rig.database, rig.blobs), search)
            working = threading.Thread(target=runner.run, daemon=True)
            working.start()
            wait(lambda: rig_jobs(rig) > 0, 60, "the first job")
            agent.kill()
            agent.wait()
            agent = start_agent(tmp_path)
            working.join(120)
            ended, found = rig.search(search), rig.candidates(search)
            assert (ended.state, ended.outcome, ended.error) == ("completed", "feasible", None)
            assert (ended.measured or {})["where"] == agent_id(rig.database)
            row = next(row for row in found[0].budget if row["metric"] == "latency_ms")
            assert (row["evidence"], row["met"]) == ("measured", True)
        finally:
            with suppress(ProcessLookupError):
                agent.kill()
            agent.wait()
            rig.database.dispose()
