"""Searches that demand measured latency, with the real worker on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.domain.device import Throughput
from app.domain.space import Assignment, widest
from app.store import tables
from tests.reliability.rig import Rig
from tests.worker.digit_files import DEVICE
from worker.job import Job, Site
from worker.measured import CONFIRMING, ROUNDS, Measured
from worker.runner import Runner

TRIALS = 8
FLOATS = Throughput(32, 32, 2.0, {"default": 0.5})
HOST = dataclasses.replace(DEVICE, name="onnxruntime-cpu-bench", compute=(*DEVICE.compute, FLOATS))
LOOSE = {"relative": 1.2, "relative_to": "float"}  # the limit on bytes asks for pruning, this one for timing


def timed(rig: Rig, search: str) -> dict[str, str]:
    """Return the ids of a search's timings by digest."""
    with rig.database.reading() as session:
        query = sa.select(tables.Timing).where(tables.Timing.search_id == search)
        return {row.digest: row.id for row in session.scalars(query)}


class Killed(BaseException):
    """What stands for a kill between two steps."""


def killed(*arguments: Any) -> None:
    """Stand for a step at which the worker is killed."""
    raise Killed


class Clock:
    """A device on which the float file takes 30 ms, too long to fit a table on, and every other `first`: `again` in a
    session of many rounds."""

    def __init__(self, float_file: str, first: float, again: float) -> None:
        self.float_file, self.first, self.again = float_file, first, again
        self.sessions: list[tuple[int, int]] = []

    def __call__(self, folder: Path, files: Sequence[str], inputs: dict[str, Any], rounds: int) -> dict[str, Any]:
        assert all((folder / name).stat().st_size for name in files)
        self.sessions.append((len(files), rounds))
        took = self.again if rounds == CONFIRMING else self.first
        times = {name: 30.0 if name == self.float_file else took for name in files}
        return {name: {"min_ms": ms, "median_ms": ms, "p95_ms": ms, "runs": rounds} for name, ms in times.items()}


class Elsewhere(Runner):
    """A runner whose files are timed by a clock."""

    def __init__(self, site: Site, search_id: str, clock: Clock) -> None:
        super().__init__(site, search_id)
        self.clock = clock

    def _measured(self, job: Job) -> Measured:
        return Measured(self.site, job, self._call, self.clock)


def clock(rig: Rig, first: float, again: float) -> Clock:
    """Return a clock for the network of a rig."""
    return Clock(widest(rig.graph, 32).digest, first, again)


def latency_row(rig: Rig, search: str) -> dict[str, Any]:
    """Return what the best candidate's budget says of latency."""
    found: dict[str, Any] = next(row for row in rig.candidates(search)[0].budget if row["metric"] == "latency_ms")
    return found


def test_run_when_trials_keep_the_limit_but_not_its_margin_then_a_longer_session_confirms_them(rig: Rig) -> None:
    search = rig.add_measured(4, {"max": 1.0}, HOST)
    timer = clock(rig, 0.98, 0.985)
    assert Elsewhere(Site(rig.database, rig.blobs), search, timer).run() == "finished"
    ended, found = rig.search(search), rig.candidates(search)
    assert (ended.state, ended.outcome) == ("completed", "feasible")
    assert (latency_row(rig, search)["value"], latency_row(rig, search)["met"]) == (0.985, True)
    assert found[0].metrics["latency"]["confirmed"] == {"first_ms": 0.98, "again_ms": 0.985}
    longer = [files for files, rounds in timer.sessions if rounds == CONFIRMING]
    assert len(longer) == 1
    assert set((ended.measured or {})["again"]) >= {Assignment.from_json(item.assignment).digest for item in found}


def test_run_when_the_longer_session_finds_them_too_slow_then_best_effort_by_its_figure(rig: Rig) -> None:
    search = rig.add_measured(4, {"max": 1.0}, HOST)
    assert Elsewhere(Site(rig.database, rig.blobs), search, clock(rig, 0.98, 1.01)).run() == "finished"
    assert rig.search(search).outcome == "best_effort"
    assert (latency_row(rig, search)["value"], latency_row(rig, search)["met"]) == (1.01, False)
    assert rig.candidates(search)[0].metrics["latency"]["confirmed"] == {"first_ms": 0.98, "again_ms": 1.01}


def test_run_when_killed_after_confirming_then_nothing_is_timed_again(rig: Rig) -> None:
    search = rig.add_measured(4, {"max": 1.0}, HOST)
    runner = Elsewhere(Site(rig.database, rig.blobs), search, clock(rig, 0.98, 0.985))
    runner._conclude = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        runner.run()
    before, later = rig.search(search).measured, clock(rig, 0.5, 0.5)
    assert Elsewhere(Site(rig.database, rig.blobs), search, later).run() == "finished"
    assert later.sessions == []
    assert (rig.search(search).outcome, rig.search(search).measured) == ("feasible", before)
    assert latency_row(rig, search)["value"] == 0.985


def test_run_when_some_trial_keeps_the_margin_then_nothing_is_confirmed(rig: Rig) -> None:
    search = rig.add_measured(4, {"max": 1.0}, HOST)
    timer = clock(rig, 0.96, 0.5)
    assert Elsewhere(Site(rig.database, rig.blobs), search, timer).run() == "finished"
    assert {rounds for _, rounds in timer.sessions} == {ROUNDS}
    assert rig.candidates(search)[0].metrics["latency"]["confirmed"] is None
    assert latency_row(rig, search)["value"] == 0.96


def test_run_when_the_model_calls_the_limit_unreachable_then_trials_near_its_least_are_tried_and_timed(
    rig: Rig,
) -> None:
    search = rig.add_measured(4, {"max": 1.0}, HOST)
    assert Elsewhere(Site(rig.database, rig.blobs), search, clock(rig, 1.2, 1.2)).run() == "finished"
    kinds = [trial.kind for trial in rig.trials(search)]
    assert "fallback" not in kinds
    assert len(kinds) == 9  # a second round, nearer to the least the model knows
    assert rig.search(search).outcome == "best_effort"
    assert latency_row(rig, search)["value"] == 1.2


def test_run_when_the_limit_can_be_kept_then_candidates_are_measured_to_keep_it(rig: Rig) -> None:
    search = rig.add_measured(TRIALS, LOOSE, HOST)
    assert Runner(Site(rig.database, rig.blobs), search).run() == "finished"
    ended, found = rig.search(search), rig.candidates(search)
    assert (ended.state, ended.outcome, ended.error) == ("completed", "feasible", None)
    row = next(row for row in found[0].budget if row["metric"] == "latency_ms")
    assert all(candidate.feasible for candidate in found)
    assert (row["evidence"], row["met"]) == ("measured", True)
    assert row["value"] <= 0.97 * row["limit"]
    assert row["latency"]["min_ms"] <= row["latency"]["median_ms"] <= row["latency"]["p95_ms"]
    assert row["limit"] == pytest.approx(1.2 * (ended.measured or {})["float_ms"])
    assert found[0].report is not None
    assert row in found[0].report["budget"]


def test_run_when_no_network_is_fast_enough_then_best_effort_with_what_was_measured(rig: Rig) -> None:
    search = rig.add_measured(4, {"max": 1e-5}, HOST, export_top=0)
    assert Runner(Site(rig.database, rig.blobs), search).run() == "finished"
    ended, found = rig.search(search), rig.candidates(search)
    assert (ended.state, ended.outcome) == ("completed", "best_effort")
    row = next(row for row in found[0].budget if row["metric"] == "latency_ms")
    assert (row["evidence"], row["met"], row["limit"]) == ("measured", False, 1e-5)
    assert row["value"] > 1e-4


def test_run_when_killed_between_measuring_and_finishing_then_nothing_is_measured_or_tried_twice(rig: Rig) -> None:
    search = rig.add_measured(TRIALS, LOOSE, HOST, export_top=0)
    runner = Runner(Site(rig.database, rig.blobs), search)
    runner._conclude = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        runner.run()
    before, tried = timed(rig, search), [(t.id, t.attempt, t.assignment) for t in rig.trials(search)]
    settled = rig.search(search).measured
    assert len(before) > 8
    assert Runner(Site(rig.database, rig.blobs), search).run() == "finished"
    after = timed(rig, search)
    assert {digest: after[digest] for digest in before} == before
    assert [(t.id, t.attempt, t.assignment) for t in rig.trials(search)] == tried
    assert rig.search(search).measured == settled
    assert rig.search(search).outcome == "feasible"


def test_run_when_the_limit_is_relative_to_8_bits_then_kept_in_the_precision_that_keeps_it_widest(rig: Rig) -> None:
    search = rig.add_measured(4, {"relative": 1.5, "relative_to": "w8a8"}, HOST, export_top=0)
    assert Runner(Site(rig.database, rig.blobs), search).run() == "finished"
    facts = rig.search(search).measured or {}
    row = next(row for row in rig.candidates(search)[0].budget if row["metric"] == "latency_ms")
    assert row["limit"] == pytest.approx(facts["limit_ms"]) == pytest.approx(1.5 * facts["w8a8_ms"])
    assert (row["evidence"], row["met"]) == ("measured", True)
    assert facts["integers_slower_by"] > 0
    bits = {bits for item in rig.candidates(search) for bits in item.assignment["weight_bits"].values()}
    assert (bits == {32}) == facts["floats_only"] == (facts["mode"] == "floats")


def test_run_when_no_measuring_is_demanded_then_nothing_is_timed(rig: Rig) -> None:
    search = rig.add_search(2)
    assert Runner(Site(rig.database, rig.blobs), search).run() == "finished"
    assert timed(rig, search) == {}
    assert rig.search(search).measured is None
    assert "latency" not in rig.candidates(search)[0].metrics
