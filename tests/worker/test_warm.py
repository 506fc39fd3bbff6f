"""Warm starts: a search begins with what others measured, and a fleet's later members spend a fifth."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import sqlalchemy as sa

from app.domain.budget import Limit
from app.domain.device import DeviceProfile
from app.domain.space import Assignment, build_space, is_legal
from app.store.tables import Evaluation, Fleet, Search, Trial
from tests.reliability.rig import Rig
from tests.worker.digit_files import DEVICE
from worker.job import Site, load_job
from worker.runner import Runner
from worker.search.loop import SearchLoop
from worker.search.sensitivity import SensitivityTable
from worker.warm import estimated, started

TRIALS = 40
TIGHT, LOOSE = (Limit("bops", relative=0.3),), (Limit("bops", relative=0.5),)


@pytest.fixture(scope="module")
def first(rig: Rig) -> str:
    """The search that measured first, a fleet's member at place 0."""
    with rig.database.writing() as session:
        session.add(Fleet(id="flt_1", name="fleet", spec={"share": 0.2}))
    key = rig.add_search(TRIALS, limits=LOOSE, export_top=0, warm_start=True)
    place(rig, key, 0)
    assert Runner(Site(rig.database, rig.blobs), key).run() == "finished"
    return key


def place(rig: Rig, search_id: str, number: int, device: DeviceProfile = DEVICE) -> None:
    with rig.database.writing() as session:
        row = session.get_one(Search, search_id)
        row.fleet_id, row.place, row.device = "flt_1", number, device.to_json()


def evaluations(rig: Rig) -> int:
    with rig.database.reading() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(Evaluation)) or 0


def run(rig: Rig, search_id: str, **fields: Any) -> list[Trial]:
    site = dataclasses.replace(Site(rig.database, rig.blobs), **fields)
    while Runner(site, search_id).run() == "again":
        pass
    return rig.trials(search_id)


def test_run_when_nothing_is_known_then_a_warm_start_is_a_plain_one(rig: Rig, first: str) -> None:
    trials, warm = rig.trials(first), rig.search(first).warm
    assert {trial.kind for trial in trials} & {"known"} == set()
    assert warm == {"trials": TRIALS, "table_of": None, "inherited": {}, "known": 0}


def test_run_when_another_budget_follows_then_it_begins_with_what_is_known(rig: Rig, first: str) -> None:
    before = evaluations(rig)
    search = rig.add_search(8, limits=TIGHT, export_top=0, warm_start=True)
    trials = run(rig, search)
    known = [trial for trial in trials if trial.kind == "known"]
    assert [trial.idx for trial in trials] == list(range(len(trials)))
    distinct = {json.dumps(trial.assignment, sort_keys=True) for trial in rig.trials(first)[1:]}
    assert {json.dumps(trial.assignment, sort_keys=True) for trial in known} == distinct
    assert [trial.idx for trial in known] == list(range(1, len(distinct) + 1))
    assert {(trial.state, trial.seconds, trial.attempt) for trial in known} == {("done", 0.0, 0)}
    violations = [trial.violation or 0.0 for trial in known]
    assert violations == sorted(violations)
    measured = [trial.assignment for trial in trials if trial.kind not in ("baseline", "known")]
    assert len(measured) == 8
    assert not [item for item in measured if item in [trial.assignment for trial in known]]
    assert evaluations(rig) - before <= 8 + 8  # trials, and finalists on the hold-out set
    assert rig.search(search).outcome == "feasible"


def test_run_when_warm_and_cut_into_slices_then_the_same_trials(rig: Rig, first: str) -> None:
    site = Site(rig.database, rig.blobs)
    cut, whole = (rig.add_search(3, limits=TIGHT, seed=4, export_top=0, warm_start=True) for _ in range(2))
    for search in (cut, whole):
        started(site, load_job(site, search))
    stories = [
        [(trial.idx, trial.kind, trial.assignment, trial.metrics) for trial in run(rig, search, slice_s=slice_s)]
        for search, slice_s in ((cut, 0.0), (whole, 300.0))
    ]
    assert stories[0] == stories[1]


def test_started_when_asked_twice_then_settled_once(rig: Rig, first: str) -> None:
    search = rig.add_search(8, limits=TIGHT, export_top=0, warm_start=True)
    site = Site(rig.database, rig.blobs)
    job = load_job(site, search)
    assert started(site, job) == started(site, job)
    kinds = [trial.kind for trial in rig.trials(search)]
    assert len(kinds) == rig.search(search).warm["known"] and set(kinds) == {"known"}  # type: ignore[index]


def test_run_when_a_later_member_of_a_fleet_then_a_fifth_of_the_evaluations(rig: Rig, first: str) -> None:
    spent = sum(trial.kind != "known" for trial in rig.trials(first))
    probes = len(SearchLoop(load_job(Site(rig.database, rig.blobs), first).goal,
                            load_job(Site(rig.database, rig.blobs), first).settings).pending_probes())  # fmt: skip
    other = dataclasses.replace(DEVICE, name="other", channel_multiple={"default": 4})
    search = rig.add_search(TRIALS, limits=TIGHT, export_top=0, warm_start=True)
    place(rig, search, 1, other)
    before = evaluations(rig)
    trials = run(rig, search)
    cost, whole = evaluations(rig) - before, spent + probes + 8
    warm = rig.search(search).warm or {}
    assert warm["table_of"] == first
    assert cost <= 0.2 * whole, (cost, whole)
    space = build_space(rig.graph, other)
    legal = [is_legal(rig.graph, space, Assignment.from_json(t.assignment or {}), other) for t in trials[1:]]
    assert all(legal)
    assert rig.search(search).outcome == "feasible"


def test_estimated_when_the_table_spans_the_value_then_interpolated_in_the_root(rig: Rig, first: str) -> None:
    job = load_job(Site(rig.database, rig.blobs), first)
    probes = SearchLoop(job.goal, job.settings).pending_probes()
    weight = next(probe for probe in probes if probe.kind == "weight")
    low, high = weight.value - 1, max(job.goal.space.weight_bits[weight.name])
    curve = {low: 0.09, weight.value + 1: 0.01, high: 0.0} if weight.value + 1 != high else {low: 0.04, high: 0.0}
    found = estimated(job, probes, SensitivityTable(0.0, {"weight": {weight.name: curve}, "keep": {}}))
    wanted = 0.04 if weight.value + 1 != high else 0.01
    assert found[weight.key] == pytest.approx(wanted)
    outside = SensitivityTable(0.0, {"weight": {weight.name: {weight.value + 1: 0.1, high: 0.0}}})
    assert weight.key not in estimated(job, probes, outside)
