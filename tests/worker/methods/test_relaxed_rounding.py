"""Rounding learned layer by layer: the output error against nearest rounding's and error feedback's."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.worker.quant import digits
from worker.graph.ops.parametric import rows_first
from worker.methods.relaxed_rounding import RoundingPlan, relaxed_rounding
from worker.quant.grids import GridRules, round_weight, weight_limit, weight_scales
from worker.quant.reference import FloatReference
from worker.quant.rounding import Rounded, Scales, damped, round_to_outputs
from worker.search.evaluate import Opened

SHORT = RoundingPlan(steps=60)


def output_error(weight: Tensor, found: Rounded, gram: Tensor) -> float:
    off = (found.integers * found.scale[:, None]).reshape(weight.shape) - weight
    return float(((off @ gram) * off).sum())


def nearest(weight: Tensor, scale: Tensor, bits: int) -> Rounded:
    return Rounded(round_weight(weight.reshape(len(scale), -1), scale, bits), scale)


@functools.cache
def layers() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return weights of the trained digits network, input Gram matrices on calibration rows and on unseen ones."""
    opened: Opened = digits.trained()
    seen, unseen = (
        FloatReference(opened.folded, opened.slicer.plan, digits.data()[role].inputs).layers
        for role in ("calibration", "evaluation")
    )
    found = {}
    for name, layer in seen.items():
        leaf = opened.folded.get_submodule(name)
        rows = rows_first(leaf).detach()
        shape = (leaf.groups, -1, rows[0].numel()) if layer.grouped else (len(rows), -1)
        found[name] = rows.reshape(*shape), layer.stats.gram, unseen[name].stats.gram
    return found


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_relaxed_rounding_when_of_trained_layers_then_better_than_nearest_and_than_error_feedback(bits: int) -> None:
    """Every layer against both; the geometric mean over layers against error feedback, on unseen rows too."""
    ratios: dict[str, list[float]] = {"seen": [], "unseen": []}
    for name, (weight, gram, unseen) in layers().items():
        scale = weight_scales(weight.reshape(-1, weight.shape[-1]), bits)
        learned = relaxed_rounding(weight, scale, bits, gram)
        plain = nearest(weight, scale, bits)
        assert output_error(weight, learned, gram) < 0.75 * output_error(weight, plain, gram), name
        if weight.dim() == 2:
            fed = round_to_outputs(weight, scale, bits, gram)
            for key, matrix in (("seen", gram), ("unseen", unseen)):
                ratios[key].append(math.log(output_error(weight, learned, matrix) / output_error(weight, fed, matrix)))
            assert ratios["seen"][-1] < 1e-3, name
            print(f"{name} {bits} bits: {math.exp(ratios['seen'][-1]):.3f} of error feedback's error")
    assert all(math.exp(sum(item) / len(item)) < 0.95 for item in ratios.values()), ratios


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2, 3, 4, 8]), st.booleans(), st.booleans(), st.booleans())
def test_relaxed_rounding_when_short_then_on_the_grid_and_never_worse_than_nearest(
    seed: int, bits: int, per_channel: bool, powers: bool, grouped: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3, 200, 12, generator=generator) @ torch.randn(3, 12, 12, generator=generator)
    gram = inputs.transpose(1, 2) @ inputs / 200
    weight = torch.randn(3, 2, 12, generator=generator)
    if not grouped:
        gram, weight = gram[0], weight.reshape(6, 12)
    flat = weight.reshape(6, 12)
    scale = weight_scales(flat, bits, per_channel, GridRules(powers=powers)).expand(6).contiguous()
    found = relaxed_rounding(weight, scale, bits, gram, Scales(per_channel, powers), SHORT)
    assert found.integers.shape == (6, 12)
    assert torch.equal(found.integers, found.integers.round())
    assert float(found.integers.abs().max()) <= weight_limit(bits)
    assert bool((found.scale > 0).all())
    assert len(found.scale.unique()) == 1 or per_channel
    if powers:
        assert torch.equal(torch.log2(found.scale), torch.log2(found.scale).round())
    matrix = damped(gram)
    assert output_error(weight, found, matrix) <= output_error(weight, nearest(weight, scale, bits), matrix) * 1.00001


def test_relaxed_rounding_when_repeated_then_the_same_and_no_seed_is_spent() -> None:
    weight, gram, _ = layers()["head"]
    scale = weight_scales(weight, 3)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one = relaxed_rounding(weight, scale, 3, gram, plan=SHORT)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    with torch.no_grad():
        other = relaxed_rounding(weight, scale, 3, gram, plan=SHORT)
    assert torch.equal(one.integers, other.integers)
    assert torch.equal(one.scale, other.scale)


def test_relaxed_rounding_when_inputs_are_dead_then_finite() -> None:
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    found = relaxed_rounding(weight, weight_scales(weight, 4), 4, torch.zeros(20, 20), plan=SHORT)
    assert bool(torch.isfinite(found.integers).all() and torch.isfinite(found.scale).all())


def test_relaxed_rounding_when_weights_lie_on_a_grid_then_found_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 24, generator=generator)
    integers = torch.randint(-1, 2, (5, 24), generator=generator).float()
    scale = torch.rand(5, generator=generator) + 0.5
    found = relaxed_rounding(integers * scale[:, None], scale, 2, inputs.T @ inputs / 400, plan=SHORT)
    assert torch.equal(found.integers, integers)
    assert torch.allclose(found.scale, scale, rtol=1e-5)
