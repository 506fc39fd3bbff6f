"""Canonical graph -> ONNX -> ONNX Runtime equals torch, before and after random slicing, at the opsets offered."""

from __future__ import annotations

import random

import onnx
import pytest

from app.domain.opsets import LOWEST
from tests.zoo import ZOO
from tests.zoo.running import difference, folded, onnx_outputs, outputs
from worker.graph.read import read_network
from worker.graph.slicing import Slicer
from worker.graph.write_onnx import write_float

TOLERANCE = 1e-4


@pytest.mark.parametrize("name", ZOO)
def test_network_when_written_then_onnxruntime_equals_torch(name: str) -> None:
    entry, (module, _) = ZOO[name], folded(name)
    data = write_float(module)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    for batch in (1, 7):
        inputs = entry.inputs(batch)
        assert difference(onnx_outputs(data, inputs), outputs(entry.network(), inputs)) < TOLERANCE


@pytest.mark.parametrize("name", ZOO)
def test_network_when_written_for_the_lowest_opset_then_onnxruntime_and_the_reader_follow_the_default(
    name: str,
) -> None:
    entry, (module, _) = ZOO[name], folded(name)
    data, inputs = write_float(module, LOWEST), entry.inputs(3)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    wanted = onnx_outputs(write_float(module), inputs)
    assert difference(onnx_outputs(data, inputs), wanted) < 1e-6
    assert difference(outputs(read_network(data), inputs), wanted) < TOLERANCE


@pytest.mark.parametrize("name", ZOO)
def test_network_when_sliced_and_written_then_onnxruntime_equals_torch(name: str) -> None:
    entry, (module, plan) = ZOO[name], folded(name)
    slicer, rng = Slicer(module, plan), random.Random(name)
    for _ in range(3):
        prunable = [group for group in plan.groups if group.frozen is None]
        kept = {g.id: sorted(rng.sample(range(g.channels), rng.randint(1, g.channels))) for g in prunable}
        sliced = slicer.sliced(kept)
        data = write_float(sliced)
        for batch in (1, 7):
            inputs = entry.inputs(batch)
            assert difference(onnx_outputs(data, inputs), outputs(sliced, inputs)) < TOLERANCE
        assert difference(outputs(read_network(data), inputs), outputs(sliced, inputs)) < TOLERANCE


@pytest.mark.parametrize("name", ZOO)
def test_network_when_written_twice_then_bytes_are_equal(name: str) -> None:
    module, _ = folded(name)
    assert write_float(module) == write_float(module)
