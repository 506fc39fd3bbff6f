"""Measuring through rows: silence, removal, cancellation, failure and being asked again."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from app.domain import ids
from app.store import measuring
from app.store.blobs import Blobs
from app.store.engine import connect
from app.store.migrate import upgrade
from app.store.tables import Agent, Measuring, now
from worker.hardware.measuring import Bench
from worker.hardware.remote import RemoteMeasurer, Waiting
from worker.job import Cancelled, GivenUp, Site

BENCH = Bench("net/0 of \u00fc", b"bytes", (((1, 3), "float32"),))
LATENCY = {"latency": {"min_ms": 1.0, "median_ms": 1.5, "p95_ms": 2.0, "runs": 9}}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    url = f"sqlite:///{tmp_path / 'app.db'}"
    upgrade(url)
    return Site(connect(url), Blobs(tmp_path / "blobs"))


def add_agent(site: Site, silent_s: float = 0.0) -> str:
    key = ids.new_id("agent")
    row = Agent(id=key, name="board", sha256=key, host={"cores": 4}, last_seen_at=now() - timedelta(seconds=silent_s))
    with site.database.writing() as session:
        session.add(row)
    return key


def jobs(site: Site) -> list[Measuring]:
    with site.database.reading() as session:
        return session.query(Measuring).all()


def failure(measurer: RemoteMeasurer) -> str:
    with pytest.raises(GivenUp) as caught:
        measurer.time([BENCH])
    return str(caught.value.problem["type"])


def test_time_when_agent_is_silent_for_more_than_a_minute_then_named_and_the_job_ends(site: Site) -> None:
    assert failure(RemoteMeasurer(site, add_agent(site, silent_s=61))) == "/problems/agent-silent"
    assert [(job.state, job.problem["type"]) for job in jobs(site)] == [("failed", "/problems/agent-silent")]


def test_time_when_agent_was_removed_then_named(site: Site) -> None:
    agent = add_agent(site)
    with site.database.writing() as session:
        session.get_one(Agent, agent).state = "removed"
    assert failure(RemoteMeasurer(site, agent)) == "/problems/agent-gone"


def test_time_when_no_answer_comes_in_time_then_named(site: Site) -> None:
    measurer = RemoteMeasurer(site, add_agent(site), waiting=Waiting(timeout_s=-1.0))
    assert failure(measurer) == "/problems/measuring-failed"


def test_time_when_cancelled_then_the_job_is_cancelled_too(site: Site) -> None:
    measurer = RemoteMeasurer(site, add_agent(site), waiting=Waiting(is_cancelled=lambda: True))
    with pytest.raises(Cancelled):
        measurer.time([BENCH])
    assert [job.state for job in jobs(site)] == ["cancelled"]


def test_time_when_asked_again_by_the_same_owner_then_the_results_of_before(site: Site) -> None:
    agent, calls = add_agent(site), [False, True]
    waiting = Waiting(owner="cal_1", is_cancelled=lambda: False)

    def answer() -> bool:
        """Stand in for the agent while the measurer waits: post the result."""
        with site.database.writing() as session:
            job = session.query(Measuring).one()
            measuring.add_results(job, {"0": LATENCY}, {"load": 0.5})
        return calls[0]

    first = RemoteMeasurer(site, agent, waiting=Waiting(owner="cal_1", is_cancelled=answer)).time([BENCH])
    again = RemoteMeasurer(site, agent, waiting=waiting)
    assert again.time([BENCH]) == first
    assert (first[BENCH.id].min_ms, first[BENCH.id].p95_ms) == (1.0, 2.0)
    assert again.conditions() == {"load": 0.5}
    assert len(jobs(site)) == 1


def test_time_when_a_network_could_not_be_measured_then_named(site: Site) -> None:
    def answer() -> bool:
        with site.database.writing() as session:
            job = session.query(Measuring).one()
            measuring.add_results(job, {"0": {"problem": {"detail": "Fail: no such op"}}}, None)
        return False

    with pytest.raises(GivenUp, match="1 of 1 networks: net/0 of \u00fc: Fail: no such op"):
        RemoteMeasurer(site, add_agent(site), waiting=Waiting(is_cancelled=answer)).time([BENCH])
