"""Methods as stages of a search: fitted in the child, kept where they help, gone on with after a kill."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

import pytest

from app.domain.budget import Limit
from app.domain.cost import count
from app.domain.space import Assignment, is_legal
from app.store import events
from app.store.tables import Artefact, Candidate, Search
from tests.reliability.rig import Rig
from worker.export.checkpoint import read_checkpoint
from worker.job import Site, load_job
from worker.runner import Runner

NARROW = (Limit("bops", relative=1 / 40),)
TIGHT = {"epochs": 24, "batch": 32, "rate": 1e-2, "shift": 0}


def site(rig: Rig) -> Site:
    return dataclasses.replace(Site(rig.database, rig.blobs))


def asked(rig: Rig, training: dict[str, Any], *methods: dict[str, Any], **ending: Any) -> str:
    """Store a queued search that trains its best network, straight-through where no methods are named."""
    search = rig.add_search(6, limits=ending.pop("limits", NARROW), **ending)
    named = [{**item, "training": training} for item in methods or ({"name": "straight-through"},)]
    with rig.database.writing() as session:
        row = session.get_one(Search, search)
        row.spec = {**row.spec, "methods": named}
    return search


def epochs_of(rig: Rig, search: str) -> list[dict[str, Any]]:
    with rig.database.reading() as session:
        return [item.payload for item in events.after(session, search, 0, 10_000) if item.kind == "training"]


@pytest.fixture(scope="module")
def trained(rig: Rig) -> str:
    search = asked(rig, TIGHT)
    assert Runner(site(rig), search).run() == "finished"
    return search


def tuned(rig: Rig, search: str) -> Candidate:
    """Return the candidate that was trained."""
    (found,) = [item for item in rig.candidates(search) if "training" in item.metrics]
    return found


def test_search_when_it_trains_then_the_trained_network_is_delivered_and_verified(rig: Rig, trained: str) -> None:
    best = tuned(rig, trained)
    (step,) = best.metrics["training"]["steps"]
    assert step["kept"] and best.metrics["training"]["repair"] == step["network"]
    assert step["after"]["kl"] < step["before"]["kl"]
    assert len(step["losses"]) == TIGHT["epochs"] and step["losses"][-1] < step["losses"][0]
    assert step["holdout"]["after"]["kl"] < step["holdout"]["before"]["kl"]
    assert best.metrics["holdout"] == step["holdout"]["after"]
    assert best.metrics["evaluation"] == step["after"]
    assert (best.rank, best.verification) == (1, "verified")


def test_search_when_it_trains_then_every_epoch_is_an_event(rig: Rig, trained: str) -> None:
    found = epochs_of(rig, trained)
    assert [(item["number"], item["of"]) for item in found] == [(n, 24) for n in range(1, 25)]
    assert {item["method"] for item in found} == {"straight-through"}


def test_export_when_the_network_was_trained_then_its_files_hold_the_trained_integers(rig: Rig, trained: str) -> None:
    best = tuned(rig, trained)
    with rig.database.reading() as session:
        row = session.query(Artefact).filter_by(candidate_id=best.id, kind="checkpoint").one()
    delivered, manifest = read_checkpoint(rig.blobs.read(row.blob_sha))
    name = best.metrics["training"]["repair"].removeprefix("trained/")
    made, _ = read_checkpoint(rig.blobs.read(name))
    for layer in made.layers:
        assert (delivered.layers[layer].weight_int == made.layers[layer].weight_int).all()
    assert manifest["metrics"]["training"]["steps"][0]["method"]["name"] == "straight-through"


def test_search_when_it_has_trained_then_no_state_is_left(rig: Rig, trained: str) -> None:
    assert not list((rig.blobs.folder / "training").glob("*"))


def test_search_when_biases_are_corrected_then_in_one_epoch_that_says_which_layers_took_rows(rig: Rig) -> None:
    search = asked(rig, {}, export_top=0)
    with rig.database.writing() as session:
        row = session.get_one(Search, search)
        row.spec = {
            **row.spec,
            "methods": [{"name": "bias-correction", "mode": "analytic"}, {"name": "bias-correction"}],
        }
    assert Runner(site(rig), search).run() == "finished"
    analytic, sequential = tuned(rig, search).metrics["training"]["steps"]
    assert analytic["method"] == {"name": "bias-correction", "mode": "analytic", "padding_aware": True, "rows": 2048}
    assert sequential["method"]["mode"] == "sequential"
    for step in (analytic, sequential):
        assert step["problem"] is None and len(step["losses"]) == 1
        before, after = ((1 - step[name]["accuracy"], step[name]["kl"]) for name in ("before", "after"))
        assert step["kept"] is (after < before)
    first, second = epochs_of(rig, search)
    assert "from BatchNorms" in first["note"] and second["note"] == ""


def test_search_when_cancelled_in_an_epoch_then_ended_within_five_seconds(rig: Rig) -> None:
    search = asked(rig, {**TIGHT, "epochs": 1000})
    runner = threading.Thread(target=Runner(site(rig), search).run, daemon=True)
    runner.start()
    while not epochs_of(rig, search):
        time.sleep(0.1)
    rig.cancel(search)
    start = time.monotonic()
    runner.join(30)
    assert time.monotonic() - start < 5
    assert rig.search(search).state == "cancelled"


def test_search_when_the_wall_time_is_spent_then_the_network_as_far_as_it_came(rig: Rig) -> None:
    search = asked(rig, {**TIGHT, "epochs": 1000, "max_wall_s": 1.0}, export_top=0)
    assert Runner(site(rig), search).run() == "finished"
    (step,) = tuned(rig, search).metrics["training"]["steps"]
    assert 1 <= len(step["losses"]) < 1000 and step["network"] is not None


def test_search_when_training_makes_it_worse_then_the_earlier_network_stays(rig: Rig) -> None:
    search = asked(rig, {**TIGHT, "epochs": 1, "rate": 1.0}, export_top=0)
    assert Runner(site(rig), search).run() == "finished"
    best = tuned(rig, search)
    (step,) = best.metrics["training"]["steps"]
    assert not step["kept"] and step["after"]["kl"] > step["before"]["kl"]
    assert best.metrics["training"]["repair"] == step["repair"]
    assert best.metrics["holdout"] == step["holdout"]["before"]


# a method that brings channels and bits of its own


WIDE = (Limit("bops", relative=1 / 8),)
LABELLED = {"epochs": 24, "batch": 16, "rate": 5e-3, "shift": 0, "labels": 0.9}
CUTTING = {"name": "learned-thresholds", "ins": 0, "density": 0.85}
"""Whole filters live or die, so that channels go."""


@pytest.fixture(scope="module")
def joint(rig: Rig) -> str:
    search = asked(rig, LABELLED, CUTTING, limits=WIDE, export_top=6)
    assert Runner(site(rig), search).run() == "finished"
    return search


def test_search_when_channels_are_trained_too_then_the_record_is_that_of_the_delivered_network(
    rig: Rig, joint: str
) -> None:
    best, goal = tuned(rig, joint), load_job(site(rig), joint).goal
    (step,) = best.metrics["training"]["steps"]
    (trial,) = [item for item in rig.trials(joint) if item.idx == best.trial_idx]
    own = Assignment.from_json(step["assignment"])
    costs = count(goal.graph, own, goal.device)
    assert step["kept"] and best.assignment == own.to_json() != trial.assignment
    assert best.costs == step["costs"] == costs.to_json()
    assert goal.budget.is_met(costs) and best.feasible
    assert is_legal(goal.graph, goal.space, own, goal.device)
    assert {item["metric"]: item["value"] for item in best.budget} == {"bops": costs.bops}
    assert {item["name"]: item["weight_bits"] for item in best.layers} == dict(own.weight_bits)
    assert best.metrics["holdout"] == step["holdout"]["after"]
    assert best.verification == "verified"


def test_export_when_channels_were_trained_too_then_channels_and_bits_are_the_method_s(rig: Rig, joint: str) -> None:
    best = tuned(rig, joint)
    with rig.database.reading() as session:
        row = session.query(Artefact).filter_by(candidate_id=best.id, kind="checkpoint").one()
    delivered, _ = read_checkpoint(rig.blobs.read(row.blob_sha))
    assert delivered.assignment.to_json() == best.assignment
    for layer in best.layers:
        stored = delivered.layers[layer["name"]]
        assert stored.weight_int is not None and stored.bits == layer["weight_bits"]
        assert len(stored.weight_int) == layer["out_channels"]


def test_search_when_a_second_method_follows_then_it_trains_the_first_one_s_network(rig: Rig) -> None:
    search = asked(rig, LABELLED, CUTTING, {"name": "straight-through"}, limits=WIDE, export_top=0)
    assert Runner(site(rig), search).run() == "finished"
    best = tuned(rig, search)
    first, second = best.metrics["training"]["steps"]
    assert first["kept"] and second["repair"] == first["network"]
    assert second["assignment"] is None and second["before"] == first["after"]
    assert best.assignment == first["assignment"] is not None


def test_search_when_nothing_legal_is_left_then_the_problem_is_told_and_the_earlier_network_stays(rig: Rig) -> None:
    search = asked(rig, {**TIGHT, "epochs": 1}, {"name": "djpq"}, limits=(Limit("bops", max=1.0),), export_top=0)
    assert Runner(site(rig), search).run() == "finished"
    (step,) = tuned(rig, search).metrics["training"]["steps"]
    assert not step["kept"] and step["network"] is None
    assert step["problem"].startswith("nothing-legal: ")
