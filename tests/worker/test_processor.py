"""What trials run on: named, kept apart, and the same from a search's beginning to its end."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.space import widest
from app.store.tables import Fleet, Search
from tests.reliability.rig import Rig
from tests.worker.test_child import WAIT_S, dataset, opening
from worker.cache import Cache
from worker.job import Job, Site, load_job
from worker.processor import CPU, CUDA, chosen, here, kind_of, name_of
from worker.provenance import provenance
from worker.runner import Runner
from worker.sandbox import Child, ChildRefused, Limits
from worker.warm import started

ELSEWHERE = "cuda:0 NVIDIA Nowhere 9000"


def begun_elsewhere(rig: Rig, **options: Any) -> str:
    """Store a search that was begun on a processor that is not here."""
    key = rig.add_search(4, **options)
    with rig.database.writing() as session:
        session.get_one(Search, key).provenance = {"processor": ELSEWHERE}
    return key


def job_of(rig: Rig, key: str) -> Job:
    return load_job(Site(rig.database, rig.blobs), key)


@pytest.mark.parametrize(
    ("name", "kind"), [("cpu", "cpu"), ("cuda:0 NVIDIA L4", "NVIDIA L4"), ("cuda:3 NVIDIA L4", "NVIDIA L4")]
)
def test_kind_when_a_machine_numbers_its_processors_then_the_number_is_left_out(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_here_when_a_child_opens_then_the_same_processor(files: Path) -> None:
    found = here(Limits())
    assert (found == CPU) == (not CUDA.exists())
    with Child() as child:
        request = opening(files, {"all": dataset(files)})
        assert child.call("open", request, WAIT_S)["processor"] == found
        assert child.call("processor", {}, WAIT_S)["processor"] == found
        assert child.call("open", {**request, "processor": CPU}, WAIT_S)["processor"] == CPU
        with pytest.raises(ChildRefused, match="run on cuda:0 NVIDIA Nowhere 9000, but this worker has") as caught:
            child.call("open", {**request, "processor": ELSEWHERE}, WAIT_S)
    assert caught.value.slug == "processor-unavailable"


def test_chosen_when_the_cpu_is_wanted_then_it_is_taken_whatever_else_there_is() -> None:
    assert chosen(CPU) == torch.device(CPU)
    assert name_of(torch.device(CPU)) == CPU


def test_keys_when_the_processors_kind_differs_then_measurements_are_not_shared(rig: Rig) -> None:
    job = job_of(rig, rig.add_search(4))
    item = (widest(job.goal.graph, 32), "full", "fast")
    keys = {name: Cache(dataclasses.replace(job, processor=name)).key(item) for name in (CPU, ELSEWHERE)}
    twin = Cache(dataclasses.replace(job, processor=ELSEWHERE.replace("cuda:0", "cuda:1"))).key(item)
    assert keys[CPU] != keys[ELSEWHERE] == twin
    assert provenance(dataclasses.replace(job, processor=ELSEWHERE))["processor"] == ELSEWHERE


@pytest.mark.fault(86)
def test_run_when_begun_on_a_processor_that_is_not_here_then_failed_by_name(rig: Rig) -> None:
    key = begun_elsewhere(rig)
    assert job_of(rig, key).processor == ELSEWHERE
    assert Runner(Site(rig.database, rig.blobs), key).run() == "finished"
    ended = rig.search(key)
    assert (ended.state, ended.error and ended.error["type"]) == ("failed", "/problems/processor-unavailable")
    assert rig.done(key) == 0


def test_started_when_the_fleets_first_search_ran_on_another_kind_then_its_table_is_not_taken_over(rig: Rig) -> None:
    first, later = begun_elsewhere(rig, warm_start=True), rig.add_search(4, warm_start=True)
    with rig.database.writing() as session:
        session.add(Fleet(id="flt_p", name="fleet", spec={"share": 0.2}))
        for place, key in enumerate((first, later)):
            row = session.get_one(Search, key)
            row.fleet_id, row.place, row.sensitivity = "flt_p", place, {"base": 0.0, "curves": {}}
    start = started(Site(rig.database, rig.blobs), job_of(rig, later))
    assert (start.inherited, start.trials) == ({}, 4)
    assert (rig.search(later).warm or {})["table_of"] is None
