"""The runner on real rows with a real child: slices, kills, cancels and fences change nothing but the time it takes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from app.domain.budget import Limit
from app.store import known
from app.store import runner as rows
from app.store.query import artefacts
from app.store.tables import Artefact, Candidate, Search, Trial
from tests.reliability.rig import Rig, build
from worker.export.audit import opset_of
from worker.export.report_view import repair_steps
from worker.finish import POLISHED
from worker.job import LostTrial, Site, load_job
from worker.processor import here
from worker.quant.steps import GAIN, STEPS
from worker.runner import Runner
from worker.sandbox import Limits

TRIALS = 12


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, files: Path, picture: dict[str, Any]) -> Iterator[tuple[Rig, str]]:
    """A search run from start to end in one slice.

    The other tests' searches lie beside it and find its measurements stored: they seldom need a child.
    """
    folder = tmp_path_factory.mktemp("whole")
    made = build(f"sqlite:///{folder / 'app.db'}", folder, files, picture)
    search = made.add_search(TRIALS, polish=True)
    assert Runner(site(made), search).run() == "finished"
    yield made, search
    made.database.dispose()


@pytest.fixture
def rig(whole: tuple[Rig, str]) -> Rig:
    return whole[0]


def begun(rig: Rig, trials: int) -> str:
    """Return a search of which the first few trials are done, a slice each."""
    search = rig.add_search(TRIALS, export_top=0)
    while rig.done(search) < trials:
        assert Runner(site(rig, slice_s=0.0), search).run() == "again"
    return search


def site(rig: Rig, **fields: Any) -> Site:
    return dataclasses.replace(Site(rig.database, rig.blobs), **fields)


def story(trials: list[Trial]) -> list[tuple[Any, ...]]:
    """Return what must not depend on when or how often a search was interrupted."""
    return [(trial.idx, trial.kind, trial.assignment, trial.state, trial.metrics) for trial in trials]


def report_of(rig: Rig, candidate: Candidate) -> dict[str, Any]:
    """Return an exported candidate's report as a user downloads it."""
    with rig.database.reading() as session:
        row = session.query(Artefact).filter_by(candidate_id=candidate.id, kind="report").one()
    found: dict[str, Any] = json.loads(rig.blobs.path(row.blob_sha).read_text())
    return found


def in_background(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def kill_child(runner: Runner) -> bool:
    """Kill the runner's child as the kernel would; tell whether there was one."""
    child = runner._child
    if child is None or not child.alive:
        return False
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    return True


def test_run_when_nothing_disturbs_then_feasible_candidates_and_verified_files(whole: tuple[Rig, str]) -> None:
    rig, search_id = whole
    search, trials, found = rig.search(search_id), rig.trials(search_id), rig.candidates(search_id)
    assert (search.state, search.outcome, search.error) == ("completed", "feasible", None)
    assert [trial.idx for trial in trials] == list(range(TRIALS + 1))
    assert {trial.state for trial in trials} == {"done"}
    assert search.progress_done == search.progress_total
    assert [candidate.rank for candidate in found] == list(range(1, len(found) + 1))
    assert all(candidate.feasible for candidate in found)
    assert (found[0].export_state, found[0].verification) == ("done", "verified")
    with rig.database.reading() as session:
        assert known.counts(session, search_id)[1] >= 5
        best = known.best_predicted(session, search_id, search.limits)
    assert best is not None and best.accuracy is not None
    assert set(search.reachable or {}) == {"least", "w8a8", "float"}
    made = search.provenance or {}
    assert (made["seed"], made["sampler"], len(made["context"])) == (0, "tpe", 64)
    assert made["processor"] == here(Limits()) == report_of(rig, found[0])["manifest"]["provenance"]["processor"]
    assert made["versions"]["torch"] and made["model_sha256"] and made["datasets"].keys() == {"all"}


@pytest.mark.parametrize(
    ("quality", "met"),
    [
        ({"max_drop": 0.999}, True),
        ({"min": 1.0}, False),
        ({"metric": "agreement", "min": 0.01}, True),
        ({"metric": "kl", "max": 1e-6}, False),
    ],
)
def test_run_when_a_quality_is_to_be_kept_then_candidates_are_judged_on_the_holdout_set(
    rig: Rig, quality: dict[str, Any], met: bool
) -> None:
    search = rig.add_search(TRIALS, export_top=0)
    with rig.database.writing() as session:
        row = session.get_one(Search, search)
        row.spec = {**row.spec, "export_top": 0, "quality": {"metric": "accuracy", **quality}}
    assert Runner(site(rig), search).run() == "finished"
    ended, found = rig.search(search), rig.candidates(search)
    assert (ended.state, ended.outcome) == ("completed", "feasible" if met else "best_effort")
    best, judged = found[0], found[0].metrics["quality"]
    assert (best.feasible, judged["met"]) == (met, met)
    assert judged["value"] == best.metrics["holdout"][judged["metric"]]
    if "max_drop" in quality:
        assert judged["floor"] == pytest.approx((ended.baseline or {})["holdout"]["accuracy"] - 0.999)


def test_run_when_the_goal_is_a_front_then_files_of_points_far_from_each_other(rig: Rig) -> None:
    search = rig.add_search(16, limits=(Limit("bops", relative=1 / 2),), goal="front", axes=["kl", "bops"])
    with rig.database.writing() as session:
        row = session.get_one(Search, search)
        row.spec = {**row.spec, "export_top": 2, "polish": False}
    assert Runner(site(rig), search).run() == "finished"
    ended, found, trials = rig.search(search), rig.candidates(search), rig.trials(search)
    assert (ended.state, ended.outcome) == ("completed", "feasible")
    assert all(candidate.feasible for candidate in found)
    assert len({(trial.params or {}).get("target") for trial in trials[1:]} - {None}) >= 6
    spread = {item.id: math.log2(item.costs["bops"]) for item in found}
    files = [spread[item.id] for item in found if item.verification == "verified"]
    assert len(found) >= 4
    assert len(files) == 2
    assert abs(files[0] - files[1]) > (max(spread.values()) - min(spread.values())) / 2
    best = min(found, key=lambda item: item.metrics["evaluation"]["kl"])
    assert best.verification == "verified"


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", -1), ("mse", 1), ("cosine", -1)])
def test_run_when_a_metric_is_named_then_candidates_are_ranked_by_it_on_the_holdout_set(
    rig: Rig, metric: str, sign: int
) -> None:
    search = rig.add_search(TRIALS, export_top=0)
    with rig.database.writing() as session:
        row = session.get_one(Search, search)
        row.spec = {**row.spec, "export_top": int(metric == "mse"), "metric": metric}
    assert Runner(site(rig), search).run() == "finished"
    found = rig.candidates(search)
    values = [sign * candidate.metrics["holdout"][metric] for candidate in found]
    assert len(set(values)) > 1
    assert values == sorted(values)
    assert {candidate.metrics["metric"] for candidate in found} == {metric}
    if metric == "mse":
        manifest = report_of(rig, found[0])["manifest"]
        assert (manifest["metric"], manifest["metrics"]["holdout"]["mse"]) == ("mse", values[0])


def test_run_when_an_opset_is_named_then_files_of_it_and_an_export_at_another_replaces_them(rig: Rig) -> None:
    search = rig.add_search(TRIALS, opset=15)
    assert Runner(site(rig), search).run() == "finished"
    best = rig.candidates(search)[0]
    assert best.verification == "verified" and (best.report or {})["opset"] == 15
    assert {kind: opset_of(data) for kind, data in onnx_files(rig, best.id).items()} == {"onnx": 15, "pruned-onnx": 15}
    with rig.database.writing() as session:
        session.get_one(Candidate, best.id).export_state = "queued"  # as the request for another opset does
    runner = Runner(site(rig), search)  # an export is a job of its own
    runner.export(best.id, rig.trials(search)[best.trial_idx], 21)
    runner.close()
    assert {kind: opset_of(data) for kind, data in onnx_files(rig, best.id).items()} == {"onnx": 21, "pruned-onnx": 21}
    assert (rig.candidates(search)[0].report or {})["opset"] == 21


def onnx_files(rig: Rig, candidate: str) -> dict[str, bytes]:
    with rig.database.reading() as session:
        found = artefacts(session, candidate)
        return {item.kind: rig.blobs.path(item.blob_sha).read_bytes() for item in found if item.kind.endswith("onnx")}


def test_run_when_the_metric_is_left_out_then_the_datas_default(rig: Rig) -> None:
    job = load_job(site(rig), rig.add_search(TRIALS))
    assert job.metric == "accuracy"


def test_run_when_finished_then_the_best_are_polished_and_their_records_say_how(whole: tuple[Rig, str]) -> None:
    made, search = whole
    with made.database.reading() as session:
        found = [row.metrics for row in session.query(Candidate).filter_by(search_id=search)]
    polished = [metrics for metrics in found if "polish" in metrics]
    assert len(polished) == min(POLISHED, len(found))
    for metrics in polished:
        steps = metrics["polish"]["steps"]
        assert [step["name"] for step in steps] == list(STEPS)
        assert all(step["kept"] == (step["after"] < step["before"] * (1 - GAIN)) for step in steps)
        reached = min([steps[0]["before"], *(step["after"] for step in steps if step["kept"])])
        assert metrics["evaluation"]["kl"] == pytest.approx(reached)
        assert ("+" in metrics["polish"]["repair"]) == any(step["kept"] for step in steps)


def test_run_when_it_is_finished_then_running_again_changes_nothing(whole: tuple[Rig, str]) -> None:
    rig, search_id = whole
    before = (rig.search(search_id).event_seq, story(rig.trials(search_id)))
    assert Runner(site(rig), search_id).run() == "finished"
    assert (rig.search(search_id).event_seq, story(rig.trials(search_id))) == before


def test_run_when_cut_into_slices_then_the_same_trials(rig: Rig, whole: tuple[Rig, str]) -> None:
    search = rig.add_search(TRIALS, export_top=0)
    ends = [Runner(site(rig, slice_s=0.0), search).run()]
    while ends[-1] == "again" and len(ends) < 100:
        ends.append(Runner(site(rig, slice_s=0.0), search).run())
    assert ends[-1] == "finished"
    assert len(ends) > 2
    assert story(rig.trials(search)) == story(whole[0].trials(whole[1]))


def test_run_when_a_killed_worker_left_a_trial_running_then_it_is_repeated_under_its_number(
    rig: Rig, whole: tuple[Rig, str]
) -> None:
    search = begun(rig, 5)
    last = max(trial.idx for trial in rig.trials(search))
    with rig.database.writing() as session:
        lost = rows.trial_of(session, search, last)
        assert lost is not None
        lost.state, lost.metrics, lost.finished_at = "running", None, None
    assert Runner(site(rig), search).run() == "finished"
    assert story(rig.trials(search)) == story(whole[0].trials(whole[1]))
    assert rig.trials(search)[last].attempt == 2


def test_run_when_a_trial_killed_its_worker_three_times_then_it_fails_as_dead(rig: Rig) -> None:
    search = begun(rig, 5)
    last = max(trial.idx for trial in rig.trials(search))
    with rig.database.writing() as session:
        poison = rows.trial_of(session, search, last)
        assert poison is not None
        poison.state, poison.metrics, poison.attempt = "running", None, rows.MAX_ATTEMPTS
    assert Runner(site(rig), search).run() == "finished"
    trial = rig.trials(search)[last]
    assert (trial.state, (trial.failure or {})["kind"]) == ("failed", "dead")
    assert rig.search(search).state == "completed"


def test_run_when_the_child_is_killed_once_then_at_most_that_trial_fails(rig: Rig) -> None:
    search = rig.add_search(24, seed=3, export_top=0)
    runner, struck = Runner(site(rig), search), threading.Event()

    def strike() -> None:
        while not kill_child(runner):
            time.sleep(0.005)
        struck.set()

    thread = in_background(strike)
    assert runner.run() == "finished"
    thread.join(5)
    trials = rig.trials(search)
    failed = [trial.failure for trial in trials if trial.state == "failed"]
    assert struck.is_set()
    assert rig.search(search).state == "completed"
    assert [trial.idx for trial in trials] == list(range(25))
    assert [(failure or {})["kind"] for failure in failed] in ([], ["out-of-memory"])


def test_run_when_every_trial_times_out_then_failed_with_the_reason(rig: Rig) -> None:
    limits = (Limit("weight_bytes", relative=0.37), Limit("macs", relative=0.61))  # no trial is stored for these
    search = rig.add_search(TRIALS, limits=limits)
    assert Runner(site(rig, trial_s=1e-6), search).run() == "finished"
    ended = rig.search(search)
    assert (ended.state, (ended.error or {})["type"]) == ("failed", "/problems/trials-keep-failing")
    assert [(trial.failure or {}).get("kind") for trial in rig.trials(search)] == [None, *["timed-out"] * 3]


def test_run_when_cancelled_then_the_child_dies_and_no_trial_stays_running(rig: Rig) -> None:
    search = rig.add_search(2000, seed=9)
    runner = Runner(site(rig), search)
    moments: list[float] = []

    def strike() -> None:
        while rig.done(search) < 3:
            time.sleep(0.01)
        rig.cancel(search)
        moments.append(time.monotonic())

    thread = in_background(strike)
    runner.run()
    ended = time.monotonic()
    thread.join(5)
    assert ended - moments[0] < 3.0
    assert rig.search(search).state == "cancelled"
    assert "running" not in {trial.state for trial in rig.trials(search)}
    assert runner._child is None


def test_run_when_cancelled_before_it_starts_then_no_trial_is_made(rig: Rig) -> None:
    search = rig.add_search(TRIALS, export_top=0)
    rig.cancel(search)
    assert Runner(site(rig), search).run() == "finished"
    assert (rig.search(search).state, rig.trials(search)) == ("cancelled", [])


def test_finish_when_another_worker_took_the_trial_then_the_late_result_is_dropped(rig: Rig) -> None:
    search = rig.add_search(TRIALS, export_top=0)
    plan = {"idx": 0, "kind": "baseline", "params": {}, "assignment": {}, "sampler_attrs": {}}
    late, prompt = (rows.TrialResult({"kl": kl}, None, {}, 0.0, True, 1.0) for kl in (9.0, 0.5))
    with rig.database.writing() as session:
        rows.claim(session, search, plan, "zombie")
    with rig.database.writing() as session:
        assert rows.claim(session, search, plan, "successor").attempt == 2
    with rig.database.writing() as session:
        assert not rows.finish(session, search, 0, "zombie", late)
        assert rows.finish(session, search, 0, "successor", prompt)
        assert not rows.finish(session, search, 0, "successor", late)
    assert rig.trials(search)[0].metrics == {"kl": 0.5}


@pytest.mark.fault(85)
def test_run_when_another_worker_is_ahead_then_this_one_leaves_and_the_search_goes_on(rig: Rig) -> None:
    search = rig.add_search(TRIALS, export_top=0)
    zombie = Runner(site(rig), search)
    started = threading.Event()
    call = zombie._attempt

    def overtaken(*arguments: Any) -> Any:
        """Stop the first sampled trial for as long as a successor needs to go past it."""
        result = call(*arguments)
        if arguments[1].idx == 3 and not started.is_set():
            started.set()
            successor = Runner(site(rig), search)
            successor.site = dataclasses.replace(successor.site, slice_s=0.0)
            for _ in range(4):
                successor.run()
        return result

    zombie._attempt = overtaken  # type: ignore[method-assign]
    with pytest.raises(LostTrial):
        zombie.run()
    zombie.close()
    assert rig.search(search).state == "running"
    assert Runner(site(rig), search).run() == "finished"
    assert [trial.idx for trial in rig.trials(search)] == list(range(TRIALS + 1))


def test_run_when_the_next_trial_is_finished_by_another_worker_then_this_one_leaves_too(rig: Rig) -> None:
    search = rig.add_search(TRIALS, export_top=0)
    zombie = Runner(site(rig), search)
    finish = zombie._finish

    def overtaken(*arguments: Any) -> None:
        """Let a successor run two trials just after this runner's third."""
        finish(*arguments)
        if arguments[2].idx == 3:
            successor = Runner(site(rig, slice_s=0.0), search)
            for _ in range(2):
                successor.run()

    zombie._finish = overtaken  # type: ignore[method-assign]
    with pytest.raises(LostTrial):
        zombie.run()
    zombie.close()
    assert rig.search(search).state == "running"


@pytest.mark.fault(68)
def test_run_when_the_budget_is_impossible_then_the_least_violating_candidate_as_best_effort(rig: Rig) -> None:
    search = rig.add_search(TRIALS, export_top=0)
    with rig.database.writing() as session:
        row = session.get_one(Search, search)
        row.spec = {**row.spec, "export_top": 0, "search": {**row.spec["search"], "allow_best_effort": True}}
        row.limits = {"bops": 1000.0}
    assert Runner(site(rig), search).run() == "finished"
    ended, found = rig.search(search), rig.candidates(search)
    assert (ended.state, ended.outcome) == ("completed", "best_effort")
    assert [candidate.feasible for candidate in found] == [False]
    done = [trial.costs["bops"] for trial in rig.trials(search) if trial.kind != "baseline" and trial.costs]
    assert found[0].costs["bops"] == min(done)


def test_run_when_there_are_no_data_then_judged_on_drawn_inputs_and_the_record_says_so(rig: Rig) -> None:
    search = rig.add_search(4, dataset={})
    assert load_job(site(rig), search).metric == "kl"
    assert Runner(site(rig), search).run() == "finished"
    (best, *_) = rig.candidates(search)
    assert (best.verification, best.metrics["metric"], best.metrics["holdout_pictures"]) == ("verified", "kl", 64)
    assert "accuracy" not in best.metrics["holdout"]
    report = report_of(rig, best)
    assert report["manifest"]["no_data"] is True and report["manifest"]["provenance"]["datasets"] == {}
    assert repair_steps(report)[0]["name"] == "no_data"
