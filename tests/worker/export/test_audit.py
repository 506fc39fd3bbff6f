"""What ONNX Runtime's kernels do otherwise than the simulation, site by site, on a network over tokens."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from tests.worker.export.written import written
from tests.worker.quant.digits import random_evaluator
from worker.export.agreement import sqnr_db
from worker.export.audit import Deviation, differences, fused_ops, site_deviations, site_sqnr
from worker.export.verify import run_onnx, simulate
from worker.quant.grids import ActivationGrid
from worker.quant.integer import integer_kernels
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import Evaluator

TOKENS, WIDTH = 6, 12


class Tokens(nn.Module):
    """Linear layers over tokens (one without a bias) around a softmax, one over rows at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 24), nn.Linear(24, TOKENS, bias=False)
        self.third, self.head = nn.Linear(TOKENS, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.softmax(3 * self.second(torch.relu(self.first(x))), -1)
        return self.head(torch.relu(self.third(x)).mean(1))  # type: ignore[no-any-return]


@functools.cache
def owner() -> Evaluator:
    torch.manual_seed(0)
    return random_evaluator(Tokens(), (TOKENS, WIDTH))


def inputs(rows: int = 256) -> tuple[Tensor, ...]:
    return (torch.randn(rows, TOKENS, WIDTH, generator=torch.Generator().manual_seed(3)),)


def compressed(weights: int, activations: int) -> CompressedNetwork:
    from app.domain.space import widest

    graph = owner().graph
    wide = widest(graph, 8)
    bits = {item.id: {"input": 8, "output": 32}.get(item.role, activations) for item in graph.activations}
    chosen = replace(wide, weight_bits=dict.fromkeys(wide.weight_bits, weights), activation_bits=bits)
    return owner().compress(chosen, "fast")


@pytest.mark.parametrize("weights", [8, 4, 3])
@pytest.mark.parametrize("activations", [8, 5, 4])
def test_site_deviations_when_linear_layers_read_tokens_in_bytes_then_no_code_differs(
    weights: int, activations: int
) -> None:
    net = compressed(weights, activations)
    found = site_deviations(written(net), net, inputs())
    assert set(integer_kernels(net, net.module.graph.nodes)) == {"first", "second", "third"}
    assert {site: found[site] for site in ("relu", "second", "relu_1")} == dict.fromkeys(
        ("relu", "second", "relu_1"), Deviation(0.0, 0)
    )
    assert all(item.steps <= 1 and item.share < 1e-3 for item in found.values())


def test_site_deviations_when_many_sums_lie_halfway_then_tokens_are_rounded_as_the_runtime_does() -> None:
    net = compressed(3, 4)
    steps, weight = net.grids["x"].scale, net.layers["first"].weight_scale
    assert weight is not None
    for channel in range(6):
        grid = ActivationGrid(float(np.float32(steps) * weight[channel] * np.float32(6)), 0, 8)
        halved = replace(net, grids={**net.grids, "relu": grid})
        assert site_deviations(written(halved), halved, inputs())["relu"] == Deviation(0.0, 0)


@pytest.mark.parametrize("weights", [8, 4, 2])
def test_write_qdq_when_tokens_are_wider_than_bytes_then_they_are_not_narrowed(weights: int) -> None:
    net = compressed(weights, 16)
    model = written(net)
    assert fused_ops(model).keys().isdisjoint({"MatMulNBits", "DynamicQuantizeMatMul"})
    assert differences(model, net) == []
    assert min(site_sqnr(model, net, inputs()).values()) > 90
    assert sqnr_db(simulate(net, inputs())[0], run_onnx(model, inputs())[0]) > 100


def test_write_qdq_when_a_softmax_lies_between_codes_then_it_is_computed_in_float() -> None:
    for activations in (8, 4, 16):
        assert "QLinearSoftmax" not in fused_ops(written(compressed(8, activations)))


@pytest.mark.parametrize("bits", [8, 4])
def test_write_qdq_when_a_softmax_has_a_scale_of_no_whole_part_then_it_counts_in_full(bits: int) -> None:
    net, scale = compressed(8, 8), float(np.float32(1 / (2**bits - 1.9)))
    fine = replace(net, grids={**net.grids, "softmax": ActivationGrid(scale, 0, bits)})
    found = site_deviations(written(fine), fine, inputs())["softmax"]
    assert found.steps <= 1 and found.share < 1e-3


def test_site_deviations_when_one_kernel_differs_then_that_site_alone() -> None:
    net = compressed(8, 8)
    proto = onnx.load_from_string(written(net))
    held = next(item for item in proto.graph.initializer if item.name == "first.w")
    altered = numpy_helper.to_array(held).copy()
    altered[:, 3] = 0
    held.CopyFrom(numpy_helper.from_array(altered, "first.w"))
    found = site_deviations(proto.SerializeToString(), net, inputs())
    assert found["relu"].steps > 1 and 0 < found["relu"].share <= 1 / 24
    assert found["second"] == found["relu_1"] == Deviation(0.0, 0)
    assert site_sqnr(proto.SerializeToString(), net, inputs())["second"] < 60
