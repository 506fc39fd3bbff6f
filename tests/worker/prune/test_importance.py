"""Importance: the output energy that removing a channel costs its consumers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.worker.quant.digits import exported, trained
from worker.graph.groups import ChannelPlan
from worker.prune.importance import ChannelScores
from worker.prune.reconstruct import Moments, moments
from worker.search.evaluate import open_network


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.flatten(F.relu(self.one(x)), 1))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def plan() -> ChannelPlan:
    return open_network(exported(Two(), (1, 4, 4)), "pt2").slicer.plan


def seen(x: torch.Tensor, weight: torch.Tensor) -> Moments:
    """Return the moments of inputs [rows, d] of a layer with weights [o, d]."""
    return moments(x, x @ weight.T)


def added(plan: ChannelPlan, x: torch.Tensor, weight: torch.Tensor) -> ChannelScores:
    scores = ChannelScores(plan)
    scores.add("two", seen(x, weight), weight[:, :, None])
    return scores


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_scores_when_channels_are_independent_then_equal_the_lost_output_energy() -> None:
    """E ||W x - W x_without_c||^2 about the mean = var(x_c) ||W[:, c]||^2."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, 4, generator=generator) * torch.tensor([1.0, 2.0, 0.5, 3.0])
    weight = torch.randn(3, 4, generator=generator)
    lost = [(x[:, [c]] @ weight[:, [c]].T).var(0).sum() for c in range(4)]
    assert torch.allclose(torch.stack(lost), x.var(0) * weight.square().sum(0), rtol=1e-3)


def test_kept_when_channels_are_independent_then_those_of_most_energy_ascending(plan: ChannelPlan) -> None:
    spread = torch.tensor([1.0, 9.0, 3.0, 7.0, 5.0, 0.1]).repeat_interleave(16)
    scores = added(plan, randn(4000, 96) * spread, torch.ones(5, 96) + 0.1 * randn(5, 96, seed=1))
    assert scores.kept({"one": 3, "x": 1, "two": 5})["one"] == (1, 3, 4)


def test_kept_when_a_channel_repeats_another_then_it_goes_before_a_weaker_one(plan: ChannelPlan) -> None:
    """Channel 1 is channel 0 again: without either nothing is lost, though both carry most energy."""
    x = randn(4000, 96)
    x[:, :32] *= 3
    x[:, 16:32] = x[:, :16]
    kept = added(plan, x, torch.ones(5, 96)).kept({"one": 5, "x": 1, "two": 5})["one"]
    assert len({0, 1} & set(kept)) == 1
    assert {2, 3, 4, 5} < set(kept)


def lost(x: torch.Tensor, weight: torch.Tensor, channels: tuple[int, ...]) -> float:
    """Return the output energy that the least squares solution on some channels leaves unexplained."""
    columns = torch.tensor([16 * channel + index for channel in channels for index in range(16)])
    y = (x - x.mean(0)) @ weight.T
    found = torch.linalg.lstsq((x - x.mean(0))[:, columns], y).solution
    return float((y - (x - x.mean(0))[:, columns] @ found).square().sum())


def test_kept_when_inputs_correlate_then_the_first_to_go_costs_least_of_all(plan: ChannelPlan) -> None:
    x = randn(2000, 96) + randn(2000, 30, seed=1) @ randn(30, 96, seed=2)
    weight = randn(5, 96, seed=3)
    kept = added(plan, x, weight).kept({"one": 5, "x": 1, "two": 5})["one"]
    losses = {some: lost(x, weight, some) for some in itertools.combinations(range(6), 5)}
    assert losses[kept] <= 1.001 * min(losses.values())


def test_kept_when_scores_tie_then_the_lower_indices(plan: ChannelPlan) -> None:
    assert ChannelScores(plan).kept({"one": 2, "x": 1, "two": 5})["one"] == (0, 1)


def test_kept_when_keeping_more_then_supersets(plan: ChannelPlan) -> None:
    scores = added(plan, randn(500, 96), randn(5, 96, seed=1))
    sets = [set(scores.kept({"one": count, "x": 1, "two": 5})["one"]) for count in range(1, 7)]
    assert all(small < large for small, large in itertools.pairwise(sets))


def test_kept_when_a_residual_group_has_several_consumers_then_all_count() -> None:
    """Each consumer reads one channel alone: those two are kept, whoever reads them, and the rest go by index."""
    opened = trained()
    group = next(g for g in opened.graph.groups if "stem" in g.producers)
    assert len(group.consumers) == 2
    scores = ChannelScores(opened.slicer.plan)
    for layer, channel in zip(group.consumers, (3, 7), strict=True):
        leaf: Any = opened.folded.get_submodule(layer)
        weight = torch.zeros_like(leaf.weight).flatten(2)
        weight[channel if leaf.groups > 1 else slice(None), 0 if leaf.groups > 1 else channel] = 1.0
        scores.add(layer, _independent(leaf), weight)
    keep = {item.id: item.channels for item in opened.graph.groups} | {group.id: 2}
    assert scores.kept(keep)[group.id] == (3, 7)


def _independent(leaf: Any) -> Moments:
    """Return moments of independent inputs of unit variance."""
    columns = leaf.weight[0].numel()
    shape = (leaf.groups,) if leaf.groups > 1 else ()
    gram = torch.eye(columns).expand(*shape, columns, columns)
    cross = torch.zeros(*shape, len(leaf.weight) // leaf.groups, columns)
    return Moments(gram, cross, torch.zeros(*shape, columns), torch.zeros(len(leaf.weight)))
