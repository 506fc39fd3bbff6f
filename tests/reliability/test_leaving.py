"""Workers that leave: stopped well, stopped for a while and revived, or gone for good with another one there."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.reliability.rig import Rig, wait

TRIALS = 24
SETTINGS = {"TIGHTFIT_WORKER_SILENCE_S": "6"}


@contextmanager
def two_workers(rig: Rig, search_id: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Let w0 begin the search and w1 stand by."""
    rig.enqueue(search_id)
    workers = {"w0": rig.start_worker("w0", **SETTINGS)}
    try:
        wait(lambda: rig.done(search_id) >= 5, 60, "5 trials done")
        workers["w1"] = rig.start_worker("w1", **SETTINGS)
        wait(lambda: b"worker w1 is ready" in (rig.folder / "w1.log").read_bytes(), 60, "w1 ready")
        yield workers
    finally:
        for worker in workers.values():
            with suppress(ProcessLookupError):
                worker.send_signal(signal.SIGCONT)
                worker.kill()
            worker.wait()


def check(rig: Rig, search_id: str, attempts: int) -> None:
    """Assert that the search ended well, every trial once, none begun more often than `attempts`."""
    search, trials = rig.search(search_id), rig.trials(search_id)
    assert (search.state, search.outcome, search.error) == ("completed", "feasible", None)
    assert [trial.idx for trial in trials] == list(range(TRIALS + 1))
    assert {trial.state for trial in trials} == {"done"}
    assert max(trial.attempt for trial in trials) <= attempts
    with rig.database.reading() as session:
        from app.store import events

        told = [row.payload["idx"] for row in events.after(session, search_id, 0) if row.kind == "trial"]
    assert sorted(told) == list(range(TRIALS + 1))


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.fault(76)
def test_worker_when_told_to_stop_then_it_ends_at_once_and_another_goes_on_with_no_attempt_lost(rig: Rig) -> None:
    search = rig.add_search(TRIALS)
    with two_workers(rig, search) as workers:
        before = rig.done(search)
        workers["w0"].terminate()
        assert workers["w0"].wait(5) == 0
        took = wait(lambda: rig.done(search) > before + 1, 20, "another trial by the other worker")
        print(f"next trial {took:.1f} s after the stop")
        wait(lambda: rig.search(search).finished_at is not None, 60, "the search's end")
        check(rig, search, attempts=1)


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.fault(74)
def test_worker_when_stopped_and_revived_after_another_took_over_then_it_writes_nothing(rig: Rig) -> None:
    search = rig.add_search(TRIALS)
    with two_workers(rig, search) as workers:
        workers["w0"].send_signal(signal.SIGSTOP)
        before = rig.done(search)
        took = wait(lambda: rig.done(search) > before + 1, 40, "another trial by the other worker")
        print(f"next trial {took:.1f} s after the stop")
        workers["w0"].send_signal(signal.SIGCONT)
        wait(lambda: b"lease-lost" in (rig.folder / "w0.log").read_bytes(), 30, "the revived worker to notice")
        wait(lambda: rig.search(search).finished_at is not None, 60, "the search's end")
        check(rig, search, attempts=2)
