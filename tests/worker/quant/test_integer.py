"""The simulation computes what ONNX Runtime computes, code for code."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from app.domain.space import Assignment
from tests.worker.export.written import written
from tests.worker.quant.digits import assignment, data, evaluator, random_evaluator, trained
from worker.export.agreement import agreement
from worker.export.audit import site_sqnr
from worker.export.verify import run_onnx, simulate
from worker.hardware import host
from worker.quant.grids import ActivationGrid
from worker.quant.integer import Codes, addition, encode, integer_kernels, multiply_exactly, sums_of
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
    model = written(net)
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
    sites = site_sqnr(written(net), net, x)
    assert min(value for name, value in sites.items() if name != "mean") >= EXACT_DB
    drifted = CompressedNetwork(net.module, {}, net.grids, net.input_shape, net.assignment)  # computes in float
    assert min(site_sqnr(written(net), drifted, x).values()) < 60
    assert agreement(simulate(net, x)[0], run_onnx(written(net), x)[0]).sqnr_db > 60


def test_kernels_when_an_operand_is_wide_or_float_then_absent() -> None:
    graph = trained().graph
    whole = compressed(assignment(graph, 1.0, 8, 8))
    assert set(integer_kernels(whole, whole.module.graph.nodes)) == {"stem", "left", "right", "add", "deep", "last"}
    wide = compressed(assignment(graph, 1.0, 8, 16))
    assert set(integer_kernels(wide, wide.module.graph.nodes)) == set()
    free = compressed(assignment(graph, 1.0, 32, 8))
    assert set(integer_kernels(free, free.module.graph.nodes)) == {"add"}


def test_kernel_when_run_then_codes_fit_the_grid_and_inputs_stay() -> None:
    net = compressed(assignment(trained().graph, 1.0, 8, 5))
    kernel = integer_kernels(net, net.module.graph.nodes)["stem"]
    codes = encode(data()["evaluation"].inputs[0][:8], net.grids["x"])
    before = codes.raw.clone()
    found = kernel([codes])
    assert torch.equal(codes.raw, before)
    assert found.grid == net.grids["relu"] and found.raw.dtype == torch.uint8
    assert int(found.raw.max()) <= found.grid.levels == 31


@given(bits=st.integers(2, 8), share=st.floats(0, 1), step=st.floats(0.001, 10), seed=st.integers(0, 9))
def test_codes_when_made_real_then_values_are_those_of_rounding_in_float(
    bits: int, share: float, step: float, seed: int
) -> None:
    grid = ActivationGrid(float(np.float32(step)), round(share * (2**bits - 1)), bits)
    x = torch.randn(3, 37, generator=torch.Generator().manual_seed(seed)) * 100
    assert torch.equal(encode(x, grid).real(), grid.fake_quantize_(x.clone()))


def test_encode_when_a_value_is_not_a_number_then_refused_and_infinity_is_the_last_code() -> None:
    grid = ActivationGrid(0.5, 3, 4)
    with pytest.raises(ArithmeticError, match="not a number"):
        encode(torch.tensor([1.0, float("nan")]), grid)
    found = encode(torch.tensor([float("inf"), -float("inf"), 0.0]), grid)
    assert found.raw.tolist() == [15, 0, 3]


SHAPES = [(3, 16, 3, 1, 1), (16, 32, 1, 2, 1), (32, 32, 3, 1, 32), (7, 13, 3, 2, 1), (12, 12, 5, 1, 3)]


@pytest.mark.parametrize("zero_point", [0, 3, 255])
@pytest.mark.parametrize(("channels", "outs", "kernel", "stride", "groups"), SHAPES)
def test_sums_when_computed_on_bytes_then_those_of_exact_arithmetic(
    channels: int, outs: int, kernel: int, stride: int, groups: int, zero_point: int
) -> None:
    generator = torch.Generator().manual_seed(outs)
    leaf = nn.Conv2d(channels, outs, kernel, stride, kernel // 2, groups=groups)
    raw = torch.randint(0, 256, (4, channels, 9, 9), generator=generator).to(torch.uint8)
    weight = torch.randint(-127, 128, leaf.weight.shape, generator=generator).to(torch.int8)
    bias = torch.randint(-5000, 5000, (outs,), generator=generator).float()
    wanted = F.conv2d(raw.double() - zero_point, weight.double(), bias.double(), stride, kernel // 2, 1, groups)
    for codes in (raw, raw.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(sums_of(leaf, weight, bias, zero_point)(codes).double(), wanted)
        on_float = sums_of(leaf, weight.to(torch.int16), bias, zero_point)
        assert torch.equal(on_float(codes).double(), wanted)


@pytest.mark.parametrize("zero_point", [0, 7])
def test_sums_when_a_matrix_is_on_bytes_then_those_of_exact_arithmetic(zero_point: int) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (5, 7, 33), generator=generator).to(torch.uint8)
    weight = torch.randint(-127, 128, (11, 33), generator=generator).to(torch.int8)
    bias = torch.arange(11.0)
    for codes in (raw, raw[:, 0]):
        wanted = F.linear(codes.double() - zero_point, weight.double(), bias.double())
        assert torch.equal(sums_of(nn.Linear(33, 11), weight, bias, zero_point)(codes).double(), wanted)


def tabled(left: ActivationGrid, right: ActivationGrid, grid: ActivationGrid) -> np.ndarray[Any, Any]:
    """QLinearAdd of all pairs of codes in NumPy: products exact in float64, one rounding for each fused operation."""
    ratio_a, ratio_b = (np.float32(item.scale) / np.float32(grid.scale) for item in (left, right))
    gathered = np.float32(float(ratio_a) * left.zero_point + float(ratio_b * np.float32(right.zero_point)))
    codes = np.arange(256, dtype=np.float64)
    inner = (codes * float(ratio_b) + float(np.float32(grid.zero_point - float(gathered)))).astype(np.float32)
    found = (codes[:, None] * float(ratio_a) + inner.astype(np.float64)).astype(np.float32)
    return np.clip(np.rint(found), 0, grid.levels)


GRIDS = st.builds(
    lambda scale, bits, share: ActivationGrid(float(np.float32(scale)), round(share * (2**bits - 1)), bits),
    st.floats(0.001, 1.0),
    st.integers(2, 8),
    st.floats(0, 1),
)


@settings(deadline=None, max_examples=50)
@given(GRIDS, GRIDS, GRIDS)
def test_addition_when_all_pairs_of_codes_are_added_then_the_runtimes_rounding(
    left: ActivationGrid, right: ActivationGrid, grid: ActivationGrid
) -> None:
    codes = torch.arange(256).to(torch.uint8)
    pairs = Codes(codes[:, None].expand(256, 256), left), Codes(codes[None].expand(256, 256), right)
    assert np.array_equal(addition(left, right, grid)(pairs).raw.numpy(), tabled(left, right, grid))


def test_multiplication_when_the_processor_does_not_fuse_then_the_other_way_rounds_once_too() -> None:
    raw, added = torch.arange(256).to(torch.uint8), torch.tensor(0.3)
    wanted = [np.float32(Fraction(int(code)) * Fraction(0.7) + Fraction(float(added))) for code in raw]
    assert np.array_equal(multiply_exactly(added, raw, 0.7).numpy(), np.array(wanted, np.float32))
