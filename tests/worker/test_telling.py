"""What a report tells of the search around its candidate: figures from rows, kept few, names of any kind."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.domain.pareto import front
from app.domain.space import Assignment
from app.store.known import PointRow
from app.store.tables import Artefact, Candidate, Model, Search
from tests.reliability.rig import Rig
from tests.worker.digit_files import DEVICE
from worker.job import Site, load_job
from worker.runner import Runner
from worker.telling import CURVES, LEVELS, POINTS, front_of, sensitivities, thinned

HOSTILE = "<script>alert(1)</script>"


def row(idx: int, accuracy: float, bops: float, feasible: bool = True, kind: str = "sampled") -> PointRow:
    costs = {"bops": bops, "weight_bytes": 1.0}
    return PointRow(idx, kind, {"accuracy": accuracy, "kl": 1 - accuracy}, costs, feasible)


@given(st.integers(0, 400), st.sets(st.integers(0, 399), max_size=60), st.integers(1, 100))
def test_thinned_when_there_are_too_many_then_the_needed_stay_and_the_rest_is_spread(
    count: int, needed: set[int], most: int
) -> None:
    points = [row(idx, 0.5, 1.0) for idx in range(count)]
    there = {idx for idx in needed if idx < count}
    kept = [item.idx for item in thinned(points, there, most)]
    assert kept == sorted(set(kept))
    assert there <= set(kept)
    assert len(kept) == min(count, max(most, len(there)))


def test_sensitivities_when_there_are_many_then_the_largest_with_ends_and_choice() -> None:
    curve = {str(level): (64 - level) / 1000 for level in range(1, 65)}
    names = [f"g{n}" for n in range(CURVES + 9)]
    scaled = {name: {level: loss * (n + 1) for level, loss in curve.items()} for n, name in enumerate(names)}
    fixed = {"only": {"8": 0.0}}
    chosen = Assignment({name: 61 for name in names}, {"only": 8}, {})
    found = sensitivities({"base": 0.0, "curves": {"keep": scaled, "weight": fixed}}, chosen)
    assert [item["name"] for item in found] == [*reversed(names)][:CURVES]
    levels = [level for level, _ in found[0]["levels"]]
    assert len(levels) <= LEVELS
    assert (levels[0], levels[-1]) == (64, 1)
    assert 61 in levels
    assert dict(found[0]["levels"])[1] == 0.063 * len(names)


def test_report_when_a_search_ends_then_tells_front_sensitivities_and_causes_with_every_name_escaped(rig: Rig) -> None:
    with rig.database.writing() as session:
        session.get_one(Model, rig.model_id).name = HOSTILE
    search = rig.add_search(6)
    with rig.database.writing() as session:
        session.get_one(Search, search).name = HOSTILE
    assert Runner(Site(rig.database, rig.blobs), search).run() == "finished"
    best = rig.candidates(search)[0]
    told, page = files_of(rig, best)
    drawn = told["search"]["front"]
    assert (drawn["metric"], drawn["axes"], drawn["left_out"]) == ("accuracy", ["weight_bytes", "bops"], 0)
    trials = {trial.idx: trial for trial in rig.trials(search)}
    assert [item["trial"] for item in drawn["points"]] == sorted(trials)
    for item in drawn["points"]:
        trial = trials[item["trial"]]
        assert item["quality"] == (trial.metrics or {})["accuracy"]
        assert item["costs"]["bops"] == (trial.costs or {})["bops"]
    assert {item["trial"]: item["rank"] for item in drawn["points"] if item["rank"]} == {
        item.trial_idx: item.rank for item in rig.candidates(search)
    }
    assert told["candidate"]["trial"] == best.trial_idx
    assert told["candidate"]["layers"] == best.layers
    assert {item["kind"] for item in told["search"]["sensitivity"]} == {"keep", "weight", "activation"}
    assert len(told["candidate"]["why"]["changes"]) <= 3
    assert told["manifest"]["names"]["model"] == HOSTILE
    assert HOSTILE.encode() not in page
    assert page.count(b"&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
    assert b'id="front-1-chosen"' in page


def files_of(rig: Rig, candidate: Candidate) -> tuple[dict[str, Any], bytes]:
    """Return a candidate's report, and its page."""
    with rig.database.reading() as session:
        found = session.query(Artefact).filter_by(candidate_id=candidate.id).all()
    contents = {item.kind: rig.blobs.path(item.blob_sha).read_bytes() for item in found}
    names = {item.kind: item.filename for item in found}
    assert names["report-html"] == names["report"].removesuffix(".json") + ".html"
    return json.loads(contents["report"]), contents["report-html"]


def test_front_of_when_there_are_a_thousand_trials_then_few_points_with_baseline_candidates_and_fronts(
    rig: Rig,
) -> None:
    search = rig.add_search(4)
    job = load_job(Site(rig.database, rig.blobs), search)
    points = [row(0, 0.99, 9e9, False, "baseline")]
    points += [row(idx, (idx * 37 % 1000) / 1000, 1e6 + idx * 91 % 977, idx % 3 > 0) for idx in range(1, 1000)]
    drawn = front_of(job, points, {500: 1})
    kept = {item["trial"] for item in drawn["points"]}
    assert len(kept) == POINTS == 1000 - drawn["left_out"]
    assert {0, 500} <= kept
    inside = [item for item in points if item.feasible]
    best = front([(item.costs["bops"], -item.metrics["accuracy"]) for item in inside])
    assert {inside[index].idx for index in best} <= kept
    assert len(json.dumps(drawn)) < 60_000


def test_front_of_when_latency_is_to_be_measured_then_no_limit_is_drawn_over_modelled_times(rig: Rig) -> None:
    search = rig.add_measured(4, {"max": 1.0}, replace(DEVICE, name="onnxruntime-cpu"))
    job = load_job(Site(rig.database, rig.blobs), search)
    assert job.demand is not None
    drawn = front_of(job, [PointRow(1, "seed", {"kl": 0.1}, {"latency_ms": 0.1}, True)], {})
    assert (drawn["metric"], drawn["axes"], drawn["limits"]) == ("kl", ["latency_ms"], {})
    assert drawn["points"][0]["costs"] == {"latency_ms": 0.1}
