"""Measuring in this process: times against each other, kernels by name, conditions."""

from __future__ import annotations

import os

import pytest

from tests.worker.hardware.test_measure import stack
from worker.hardware.measuring import Bench, LocalMeasurer, can_pin, kernel_times, pinned

PICTURE = (((1, 64, 1, 1), "float32"),)


def test_time_when_one_network_is_far_deeper_then_it_takes_longer() -> None:
    found = LocalMeasurer(rounds=5).time([Bench("shallow", stack(1), PICTURE), Bench("deep", stack(200), PICTURE)])
    assert found["deep"].runs == found["shallow"].runs == 5
    assert found["deep"].min_ms > 2 * found["shallow"].min_ms > 0


def test_kernels_when_profiled_then_each_product_has_its_time() -> None:
    found = LocalMeasurer(profiled=3).kernels([Bench("deep", stack(20), PICTURE)])["deep"]
    assert len(found) == 20 + 1
    assert all(spent > 0 for spent in found.values())


def test_kernel_times_when_a_kernel_ran_twice_then_its_minimum() -> None:
    events = [
        {"cat": "Node", "name": "a_kernel_time", "dur": 30},
        {"cat": "Node", "name": "a_kernel_time", "dur": 20},
        {"cat": "Node", "name": "a_fence_before", "dur": 1},
        {"cat": "Session", "name": "b_kernel_time", "dur": 1},
    ]
    assert kernel_times(events) == {"a": 0.02}


@pytest.mark.skipif(not can_pin(), reason="this system cannot pin threads")
def test_pinned_when_left_then_the_cores_are_as_before() -> None:
    before = os.sched_getaffinity(0)
    with pinned():
        assert os.sched_getaffinity(0) == {max(before)}
    assert os.sched_getaffinity(0) == before


def test_conditions_when_asked_then_runtime_threads_and_governor_are_named() -> None:
    found = LocalMeasurer().conditions()
    assert found["threads"] == 1
    assert {"processor", "features", "onnxruntime", "governor", "load", "pinned"} <= set(found)


def test_example_when_an_input_holds_ids_then_zeros() -> None:
    reals, ids = Bench("x", b"", (((1, 2), "float32"), ((1, 3), "int64"))).example()
    assert reals.dtype == "float32" and reals.std() > 0
    assert ids.tolist() == [[0, 0, 0]]
