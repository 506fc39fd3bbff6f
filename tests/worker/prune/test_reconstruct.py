"""Reconstruction: patches are what layers see, and refits are least squares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from worker.graph.ops.parametric import rows_first
from worker.prune.reconstruct import merged, moments, output_sizes, patches, refit, rows_at, sample_positions, std_mean

CASES: list[tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = [
    (nn.Conv2d, {"kernel_size": 3, "padding": 1}, (9, 7)),
    (nn.Conv2d, {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2)}, (9, 7)),
    (nn.Conv2d, {"kernel_size": 3, "dilation": 2, "padding": 2}, (8, 8)),
    (nn.Conv2d, {"kernel_size": 1, "stride": 2}, (8, 8)),
    (nn.Conv2d, {"kernel_size": 3, "groups": 2}, (8, 8)),
    (nn.Conv2d, {"kernel_size": 3, "groups": 4, "padding": 1}, (6, 6)),
    (nn.Conv1d, {"kernel_size": 5, "padding": 2, "stride": 2}, (16,)),
    (nn.Conv1d, {"kernel_size": 3, "groups": 4}, (16,)),
    (nn.Conv3d, {"kernel_size": (1, 2, 3), "padding": (0, 1, 1)}, (3, 4, 5)),
]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "options", "sizes"), CASES)
@pytest.mark.parametrize("last", [False, True])
def test_patches_when_multiplied_by_the_weights_then_give_the_layers_outputs(
    kind: type[nn.Module], options: dict[str, Any], sizes: tuple[int, ...], last: bool
) -> None:
    leaf: Any = kind(4, 8, **options)
    x = randn(3, 4, *sizes)
    x = x.contiguous(memory_format=torch.channels_last) if last and x.dim() == 4 else x
    with torch.no_grad():
        y = leaf(x)
    positions = sample_positions(tuple(y.shape[2:]), 11, seed=3)
    found, weight = patches(leaf, x, positions), leaf.weight.detach()
    if leaf.groups == 1:
        outputs = found @ weight.flatten(1).T
    else:
        grouped = weight.reshape(leaf.groups, -1, weight[0].numel())
        outputs = torch.einsum("rgd,god->rgo", found, grouped).flatten(1)
    wanted = rows_at(y, positions, linear=False)
    assert torch.allclose(outputs + leaf.bias.detach(), wanted, atol=1e-5)


def test_patches_when_transposed_then_they_times_the_rows_are_the_outputs() -> None:
    torch.manual_seed(0)
    cases = (
        (nn.ConvTranspose1d(3, 4, 5, 2, 1, output_padding=1, dilation=2), (2, 3, 7)),
        (nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), groups=2), (2, 4, 5, 4)),
        (nn.ConvTranspose3d(2, 3, 2, 2), (2, 2, 3, 2, 2)),
    )
    for leaf, shape in cases:
        x = torch.randn(shape)
        y = leaf(x).detach()
        assert output_sizes(leaf, shape[2:]) == list(y.shape[2:])
        positions = sample_positions(y.shape[2:], 13, seed=1)
        seen, weight = (
            patches(leaf, x, positions).reshape(-1, leaf.groups, rows_first(leaf)[0].numel()),
            rows_first(leaf),
        )
        parts = weight.reshape(leaf.groups, -1, weight[0].numel())
        found = torch.einsum("rgd,god->rgo", seen, parts).reshape(len(seen), -1)
        assert leaf.bias is not None
        assert torch.allclose(found + leaf.bias, rows_at(y, positions, False), atol=1e-5)


def test_patches_when_linear_over_tokens_then_tokens_become_rows() -> None:
    x = randn(2, 3, 4)
    assert torch.equal(patches(nn.Linear(4, 5), x, torch.arange(3)), x.reshape(6, 4))
    assert torch.equal(patches(nn.Linear(4, 5), x, torch.tensor([0, 2])), x[:, [0, 2]].reshape(4, 4))
    assert torch.equal(patches(nn.Linear(4, 5), x[:, 0], torch.tensor([0])), x[:, 0])


def test_sample_positions_when_fewer_places_than_asked_then_all_once() -> None:
    assert sample_positions((2, 3), 100, seed=0).tolist() == list(range(6))


def test_sample_positions_when_seeded_alike_then_equal_and_distinct() -> None:
    first = sample_positions((32, 32), 50, seed=7)
    assert torch.equal(first, sample_positions((32, 32), 50, seed=7))
    assert len(first.unique()) == 50


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 5))
def test_refit_when_hardly_damped_then_is_the_least_squares_solution(seed: int, dims: int, outs: int) -> None:
    x, y = randn(400, dims, seed=seed), randn(400, outs, seed=seed + 1)
    found = refit(moments(x, y), torch.zeros(outs, dims), damp=1e-7)
    exact = torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution.T
    assert torch.allclose(found, exact, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7))
def test_refit_when_inputs_are_removed_then_error_falls_and_never_exceeds_the_kept_weights(
    seed: int, kept: int
) -> None:
    """The damped objective at its minimum is at most the one at the prior, whose damping term is zero."""
    mixed = randn(600, 8, seed=seed) @ randn(8, 8, seed=seed + 1)
    weight = randn(4, 8, seed=seed + 2)
    y, x = mixed @ weight.T, mixed[:, :kept]
    stats, prior = moments(x, y), weight[:, :kept]
    y, x = y - y.mean(0), x - x.mean(0)
    errors = [float((y - x @ w.T).square().mean()) for w in (refit(stats, prior), prior)]
    assert errors[0] <= errors[1] * (1 + 1e-4)


def test_refit_when_a_twin_of_a_removed_channel_is_kept_then_the_output_is_restored() -> None:
    x = randn(500, 3)
    x = torch.cat([x, x[:, :1]], 1)  # column 3 repeats column 0
    weight = randn(5, 4, seed=1)
    y = x @ weight.T
    found = refit(moments(x[:, :3], y), weight[:, :3], damp=1e-6)
    assert torch.allclose(found[:, 0], weight[:, 0] + weight[:, 3], atol=1e-3)


def test_refit_when_nothing_changed_then_weights_stay() -> None:
    x, weight = randn(2000, 10), randn(4, 10, seed=1)
    assert torch.allclose(refit(moments(x, x @ weight.T), weight), weight, atol=1e-5)


def test_refit_when_a_channel_is_dead_then_finite() -> None:
    x = torch.cat([randn(100, 3), torch.zeros(100, 1)], 1)
    assert torch.isfinite(refit(moments(x, randn(100, 2, seed=1)), torch.ones(2, 4))).all()


def test_refit_when_grouped_then_equals_each_group_alone() -> None:
    x, y, prior = randn(300, 2, 5), randn(300, 6, seed=1), torch.zeros(2, 3, 5)
    together = refit(moments(x, y), prior)
    for group in range(2):
        alone = refit(moments(x[:, group], y[:, 3 * group : 3 * group + 3]), prior[group])
        assert torch.allclose(together[group], alone, atol=1e-5)


@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 1000))
def test_std_mean_when_compared_with_torch_then_equal(rows: int, columns: int, seed: int) -> None:
    x = randn(rows, columns, seed=seed) * 3 + 5
    for found, wanted in zip(std_mean(x), torch.std_mean(x, 0), strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)


def test_std_mean_when_one_row_then_no_deviation_is_known() -> None:
    deviation, mean = std_mean(randn(1, 3))
    assert bool(deviation.isnan().all())
    assert torch.equal(mean, randn(1, 3)[0])


def test_patches_when_in_groups_then_memory_holds_group_after_group() -> None:
    found = patches(nn.Conv2d(6, 6, 3, groups=6), randn(2, 6, 5, 5), torch.arange(9))
    assert found.shape == (18, 6, 9)
    assert found.transpose(0, 1).is_contiguous()


@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize("first", [1, 7, 19])
def test_merged_when_rows_come_in_two_parts_then_the_moments_of_all(groups: int | None, first: int) -> None:
    generator = torch.Generator().manual_seed(first)
    shape = (20, 5) if groups is None else (20, groups, 5)
    x, y = torch.randn(shape, generator=generator) + 3, torch.randn(20, 6, generator=generator) - 2
    found, wanted = (
        merged(moments(x[:first], y[:first]), first, moments(x[first:], y[first:]), 20 - first),
        moments(x, y),
    )
    for part in ("gram", "cross", "mean_x", "mean_y"):
        assert torch.allclose(getattr(found, part), getattr(wanted, part), atol=1e-5), part
