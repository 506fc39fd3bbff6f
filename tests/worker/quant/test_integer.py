"""The simulation computes what ONNX Runtime computes, code for code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from app.domain.space import Assignment
from tests.worker.quant.digits import assignment, data, evaluator, random_evaluator, trained
from worker.export.agreement import agreement
from worker.export.audit import site_sqnr
from worker.export.onnx_qdq import write_qdq
from worker.export.verify import run_onnx, simulate
from worker.hardware import host
from worker.quant.integer import integer_kernels
from worker.quant.network import CompressedNetwork

BITS = [(8, 8), (4, 8), (4, 4), (8, 5)]
EXACT_DB = 110.0


def needs_fused_multiplication() -> None:
    if "avx2" not in str(host.describe()["features"]):
        pytest.skip("without fused multiplications the runtime's additions round elsewhere")


def compressed(a: Assignment) -> CompressedNetwork:
    return evaluator().compress(a, "fast")


@pytest.mark.parametrize(("weights", "activations"), BITS)
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_network_when_run_in_onnxruntime_then_every_code_is_the_simulations(
    keep: float, weights: int, activations: int
) -> None:
    needs_fused_multiplication()
    net = compressed(assignment(trained().graph, keep, weights, activations))
    inputs = data()["evaluation"].inputs
    model = write_qdq(net)
    found = site_sqnr(model, net, [item[:200] for item in inputs])
    exact = {site: value for site, value in found.items() if site != "mean"}  # a mean is no integer kernel
    assert set(exact) == {"x", "relu", "relu_1", "right", "relu_2", "relu6", "relu_3"}
    assert min(exact.values()) >= EXACT_DB
    outputs = agreement(simulate(net, inputs)[0], run_onnx(model, inputs)[0])
    assert outputs.top1 == 1.0 and outputs.sqnr_db > 60


class Deep(nn.Module):
    """Forty layers with skips: a code that is off by one early on is off everywhere at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(12, 12, 3, 1, 1), nn.Conv2d(12, 12, 1)]) for _ in range(20)
        )
        self.hidden, self.head = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        for first, second in self.blocks:  # type: ignore[misc]
            x = x + second(F.relu6(first(x)))
        return self.head(F.relu(self.hidden(x.mean((2, 3)))))  # type: ignore[no-any-return]


def test_network_when_it_is_deep_then_the_simulation_does_not_drift_from_the_runtime() -> None:
    needs_fused_multiplication()
    torch.manual_seed(0)
    owner = random_evaluator(Deep(), (3, 10, 10))
    net = owner.compress(assignment(owner.graph, 1.0, 8, 8), "fast")
    x = [torch.randn(64, 3, 10, 10, generator=torch.Generator().manual_seed(3))]
    sites = site_sqnr(write_qdq(net), net, x)
    assert min(value for name, value in sites.items() if name != "mean") >= EXACT_DB
    drifted = CompressedNetwork(net.module, {}, net.grids, net.input_shape, net.assignment)  # computes in float
    assert min(site_sqnr(write_qdq(net), drifted, x).values()) < 60
    assert agreement(simulate(net, x)[0], run_onnx(write_qdq(net), x)[0]).sqnr_db > 60


def test_kernels_when_an_operand_is_wide_or_float_then_absent() -> None:
    graph = trained().graph
    whole = compressed(assignment(graph, 1.0, 8, 8))
    assert set(integer_kernels(whole, whole.module.graph.nodes)) == {"stem", "left", "right", "add", "deep", "last"}
    wide = compressed(assignment(graph, 1.0, 8, 16))
    assert set(integer_kernels(wide, wide.module.graph.nodes)) == set()
    free = compressed(assignment(graph, 1.0, 32, 8))
    assert set(integer_kernels(free, free.module.graph.nodes)) == {"add"}


def test_kernel_when_run_then_values_lie_on_the_grid_and_inputs_stay() -> None:
    net = compressed(assignment(trained().graph, 1.0, 8, 8))
    kernel, grid = integer_kernels(net, net.module.graph.nodes)["stem"], net.grids["x"]
    x = grid.fake_quantize_(data()["evaluation"].inputs[0][:8].clone())
    before = x.clone()
    codes = (kernel([x]) / net.grids["relu"].scale).numpy()
    assert torch.equal(x, before)
    assert np.abs(codes - np.rint(codes)).max() < 1e-4
    assert codes.min() >= -net.grids["relu"].zero_point and codes.max() <= net.grids["relu"].levels
