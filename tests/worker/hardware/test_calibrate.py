"""Calibration: a deterministic plan, a table that predicts a simulated device, batches repeated after a disturbance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import pytest

from app.domain.latency import LatencyTable, Work, as_run, variants
from tests.worker.hardware.test_dummies import opened
from worker.hardware.calibrate import Effort, Planned, calibrate, kind_of, plan, random_version, table
from worker.hardware.measure import Latency
from worker.hardware.measuring import LocalMeasurer
from worker.hardware.microbench import Shapes, shapes_in
from worker.search.evaluate import Opened

SMALL = Effort(micro=40, micro_versions=2, versions=6, seed=3)


def networks() -> dict[str, Opened]:
    return {name: opened(name) for name in ("mobilenet_v2", "resnet")}


@cache
def planned() -> tuple[Planned, ...]:
    return plan(networks(), SMALL)


def true_ms(works: Sequence[Work]) -> float:
    """What a simulated device takes: two microseconds per kernel, a rate per precision, some per element."""
    rates = {"float": 2e-8, "int8": 5e-9, "uint8": 1e-8, "int16": 4e-8}
    return 0.004 + sum(0.002 + rates[item.precision] * item.macs + 1e-7 * item.outs * item.positions for item in works)


def test_table_when_a_device_keeps_simple_laws_then_other_versions_are_predicted() -> None:
    times = {item.bench.id: Latency.of([true_ms(item.works)]) for item in planned()}
    found = table(planned(), times, {"threads": 1})
    assert found.conditions["sources"] == ["mobilenet_v2", "resnet"]
    assert found.conditions["threads"] == 1 and found.conditions["networks"] == len(planned()) == 40 * 2 + 2 * 6
    others = plan(networks(), Effort(micro=10, micro_versions=1, versions=10, seed=11))
    errors = [abs(found.network_ms(item.works) / true_ms(item.works) - 1) for item in others]
    assert np.median(errors) < 0.05
    assert found.errors["all"] > 0 and {"float", "integer"} <= set(found.errors)


def test_plan_when_made_twice_then_equal_files() -> None:
    again = plan(networks(), SMALL)
    assert [(item.bench.id, item.bench.model) for item in again] == [
        (item.bench.id, item.bench.model) for item in planned()
    ]
    assert {item.kind for item in planned()} == {"float", "integer", "mixed"}
    assert plan(networks(), Effort(4, 1, 1, seed=4)) != plan(networks(), Effort(4, 1, 1, seed=5))


def test_calibrate_when_measured_here_then_conditions_and_progress() -> None:
    seen: list[tuple[int, int]] = []
    effort = Effort(micro=6, micro_versions=1, versions=2)
    found = calibrate(networks(), LocalMeasurer(rounds=2), lambda done, total: seen.append((done, total)), effort)
    assert seen[-1] == (10, 10)
    assert found.overhead_ms > 0 or found.coefficients
    assert found.conditions["onnxruntime"] and found.error_p90 is not None
    work = next(item for item in planned() if item.kind == "integer").works
    assert found.network_ms(work) > 0


@pytest.mark.parametrize("seed", range(5))
def test_version_when_drawn_then_widths_and_bits_are_legal(seed: int) -> None:
    import random

    graph = opened("resnet").graph
    chosen = random_version(graph, random.Random(seed))
    assert all(1 <= chosen.keep[group.id] <= group.channels for group in graph.groups)
    assert set(chosen.weight_bits.values()) <= {2, 3, 4, 5, 6, 8, 32}
    assert kind_of(chosen) in {"float", "mixed", "integer"}


def test_shapes_when_a_network_has_others_than_usual_then_among_them() -> None:
    found = shapes_in([opened("lenet").graph])
    assert set(found.extents) >= {24, *Shapes().extents}
    assert found.inputs == (1, 3)


def test_classes_when_fitted_then_of_the_kernels_that_ran() -> None:
    times: Mapping[str, Latency] = {item.bench.id: Latency.of([true_ms(item.works)]) for item in planned()}
    found: LatencyTable = table(planned(), times, {})
    run = [as_run(work, saturating=False) for item in planned() for work in item.works]
    ran = {key for work in run for key, weight, _ in variants(work) if weight}
    assert set(found.coefficients) == ran
    assert all(found.covers(work) for item in planned() for work in item.works)
