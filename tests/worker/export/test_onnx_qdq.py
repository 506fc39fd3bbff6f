"""The QDQ file: fused by ONNX Runtime, small, and equal to the simulation."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from tests.worker.export.written import written
from worker.export.agreement import accuracy, agreement
from worker.export.audit import differences, fused_ops
from worker.export.onnx_qdq import QdqWriter, code_of, write_qdq
from worker.export.verify import run_onnx, simulate
from worker.hardware.host import describe, has_saturating_pairs
from worker.quant.grids import ActivationGrid
from worker.quant.network import CompressedNetwork

from .conftest import Lab, canonical, host_device

CASES = [
    (1.0, [8], [8], 50.0),
    (1.0, [7], [8], 50.0),
    (1.0, [4], [8], 50.0),
    (0.875, [8, 5, 6, 4, 3, 7, 8, 2], [8, 8, 4], 30.0),
    (0.75, [4], [4], 30.0),
    (0.5, [2, 3], [8], 40.0),
    (1.0, [8], [32], 100.0),
    (1.0, [3, 4], [32], 100.0),
    (1.0, [32], [32], 100.0),
    (1.0, [32, 8], [8], 50.0),
    (1.0, [16], [16], 60.0),
    (0.75, [16, 8], [16, 8], 40.0),
]


@pytest.mark.parametrize(("keep", "weights", "acts", "sqnr"), CASES)
def test_write_qdq_when_run_then_answers_are_the_simulations(
    lab: Lab, keep: float, weights: list[int], acts: list[int], sqnr: float
) -> None:
    net, pictures = lab.compress(keep, weights, acts), lab.data["evaluation"]
    (simulated,) = simulate(net, pictures.inputs)
    (exported,) = run_onnx(written(net), pictures.inputs)
    found = agreement(simulated, exported)
    assert found.pictures == 1100
    assert found.top1 >= 0.995
    assert found.sqnr_db > sqnr
    assert pictures.labels is not None
    labels = pictures.labels.numpy()
    assert abs(accuracy(simulated, labels) - accuracy(exported, labels)) <= 0.005


@pytest.mark.parametrize(("keep", "weights", "acts", "sqnr"), CASES)
def test_write_qdq_when_read_tensor_by_tensor_then_nothing_differs(
    lab: Lab, keep: float, weights: list[int], acts: list[int], sqnr: float
) -> None:
    net = lab.compress(keep, weights, acts)
    assert differences(written(net), net) == []


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("acts", [[8], [4]])
def test_write_qdq_when_optimized_then_every_layer_is_an_integer_kernel(lab: Lab, bits: int, acts: list[int]) -> None:
    found = fused_ops(written(lab.compress(1.0, [bits], acts)))
    assert found["QLinearConv"] == 7
    assert found["QLinearAdd"] == 2
    assert found["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Gemm", "Add", "Mod", "Sub", "Cast"} & set(found)
    assert found.get("Clip", 0) == (0 if acts == [8] else 10)


def test_write_qdq_when_written_twice_then_bytes_are_equal(mixed: CompressedNetwork) -> None:
    data = write_qdq(mixed)
    assert write_qdq(mixed) == data
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)


def test_write_qdq_when_bits_fall_then_the_file_shrinks_by_the_weights(lab: Lab) -> None:
    sizes = [len(write_qdq(lab.compress(1.0, [bits], [8]))) for bits in (8, 4, 2)]
    weights = sum(layer.weight_int.size for layer in lab.compress(1.0, [8], [8]).layers.values() if layer.bits == 8)  # type: ignore[union-attr]
    assert sizes[0] - sizes[1] > 0.47 * weights
    assert sizes[0] > sizes[1] > sizes[2]


def test_write_qdq_when_the_device_saturates_then_weights_of_layers_that_could_are_unsigned(lab: Lab) -> None:
    net = lab.compress(1.0, [8], [8])
    kinds = weight_types(write_qdq(net, saturating=True))
    assert TensorProto.UINT8 in kinds.values()
    assert kinds["depth"] == TensorProto.INT8  # depthwise kernels do not add pairs
    assert {name for name, kind in kinds.items() if kind == TensorProto.UINT8} == {*QdqWriter(net).saturating_layers()}
    narrow = write_qdq(lab.compress(1.0, [8], [4]), saturating=True)
    unsigned = {name for name, kind in weight_types(narrow).items() if kind == TensorProto.UINT8}
    assert unsigned == {"stem"}  # the only one that reads 8 bits


def test_write_qdq_when_the_device_adds_exactly_then_every_weight_is_signed(lab: Lab) -> None:
    net = lab.compress(1.0, [8], [8])
    assert set(weight_types(write_qdq(net)).values()) == {TensorProto.INT8}


def test_write_qdq_when_signed_or_unsigned_then_the_same_answers_where_pairs_do_not_saturate(lab: Lab) -> None:
    if has_saturating_pairs(describe()):
        pytest.skip("this processor saturates pairs of products")
    net, (pictures,) = lab.compress(1.0, [8], [8]), lab.evaluator.pictures("full").head(8).inputs
    signed, unsigned = (run_onnx(write_qdq(net, way), [pictures])[0] for way in (False, True))
    assert np.array_equal(signed, unsigned)


def weight_types(model: bytes) -> dict[str, int]:
    graph = onnx.load_from_string(model).graph
    return {item.name.removesuffix(".w"): item.data_type for item in graph.initializer if item.name.endswith(".w")}


class Saturating(nn.Module):
    """All weights at their largest: the worst sum of neighbouring products."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 1)
        nn.init.ones_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.conv(x)))


def test_write_qdq_when_int16_would_overflow_then_outputs_are_exact_on_any_processor() -> None:
    from worker.data import RoleData
    from worker.search.evaluate import open_evaluator, open_network

    torch.manual_seed(0)
    network = open_network(canonical(Saturating(), (16, 6, 6)), "pt2")
    ones = RoleData((torch.rand(64, 16, 6, 6) * 0.1 + 0.9,))
    evaluator = open_evaluator(network, {"calibration": ones, "evaluation": ones, "holdout": ones}, host_device())
    net = Lab(evaluator, {}).compress(1.0, [8], [8])
    assert np.abs(net.layers["conv"].weight_int).min() > 100  # type: ignore[arg-type]
    found = agreement(simulate(net, ones.inputs)[0], run_onnx(write_qdq(net, saturating=True), ones.inputs)[0])
    assert found.sqnr_db > 60


class Varied(nn.Module):
    """What the digit network lacks: concat, average pool, hard swish, squeeze and excitation, 1-D-like flatten, pad."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.gate = nn.Conv2d(16, 16, 1)
        self.mix = nn.Conv2d(16, 12, 3, stride=2)
        self.fc1, self.fc2 = nn.Linear(12 * 4, 20), nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([torch.relu(self.a(x)), nn.functional.hardswish(self.b(x))], 1)
        y = y * torch.sigmoid(self.gate(torch.mean(y, dim=(2, 3), keepdim=True)))
        y = nn.functional.avg_pool2d(nn.functional.pad(y, (1, 1, 1, 1)), 2)
        return self.fc2(nn.functional.relu6(self.fc1(torch.flatten(self.mix(y), 1))))


@pytest.mark.parametrize(("weights", "acts"), [([8], [8]), ([4, 6], [8]), ([5], [4])])
def test_write_qdq_when_ops_are_varied_then_answers_are_the_simulations(weights: list[int], acts: list[int]) -> None:
    from worker.data import RoleData
    from worker.search.evaluate import open_evaluator, open_network

    torch.manual_seed(1)
    network = open_network(canonical(Varied(), (3, 8, 8)), "pt2")
    noise = RoleData((torch.randn(512, 3, 8, 8),))
    evaluator = open_evaluator(network, {"calibration": noise, "evaluation": noise, "holdout": noise}, host_device())
    net = Lab(evaluator, {}).compress(1.0, weights, acts)
    model = written(net)
    assert differences(model, net) == []
    found = agreement(simulate(net, noise.inputs)[0], run_onnx(model, noise.inputs)[0])
    assert found.top1 >= 0.99
    assert found.sqnr_db > 25


def test_code_of_when_a_bound_lies_between_codes_then_rounds_half_to_even_and_saturates() -> None:
    grid = ActivationGrid(0.5, 3, 4)
    assert [code_of(value, grid) for value in (0.0, 1.25, 1.75, 6.0, 1e9, float("inf"), -9.0)] == [
        3,
        5,
        7,
        15,
        255,
        255,
        0,
    ]


def test_input_grid_when_asked_for_a_layer_then_it_is_that_of_its_producer(lab: Lab) -> None:
    net = lab.compress(1.0, [8], [8])
    writer = QdqWriter(net)
    first = lab.graph.layers[0]
    assert writer.input_grid(first.name) == net.grids[first.input]
