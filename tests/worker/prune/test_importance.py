"""Importance: the output energy that removing a channel costs its consumers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.worker.quant.digits import exported, trained
from worker.graph.groups import ChannelPlan
from worker.prune.importance import ChannelScores
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


def test_scores_when_a_consumer_is_added_then_variance_times_squared_weights(plan: ChannelPlan) -> None:
    scores = ChannelScores(plan)
    variance, weight = torch.rand(96, 1), torch.randn(5, 96, 1)
    scores.add("two", variance, weight)
    wanted = (variance.squeeze(1) * weight.squeeze(2).square().sum(0)).reshape(6, 16).sum(1)
    assert torch.allclose(scores.of("one").float(), wanted, rtol=1e-5)


def test_scores_when_channels_are_independent_then_equal_the_lost_output_energy() -> None:
    """E ||W x - W x_without_c||^2 about the mean = var(x_c) ||W[:, c]||^2."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, 4, generator=generator) * torch.tensor([1.0, 2.0, 0.5, 3.0])
    weight = torch.randn(3, 4, generator=generator)
    lost = [(x[:, [c]] @ weight[:, [c]].T).var(0).sum() for c in range(4)]
    assert torch.allclose(torch.stack(lost), x.var(0) * weight.square().sum(0), rtol=1e-3)


def test_kept_when_scores_differ_then_the_best_ascending(plan: ChannelPlan) -> None:
    scores = ChannelScores(plan)
    energy = torch.tensor([1.0, 9.0, 3.0, 7.0, 5.0, 0.0]).repeat_interleave(16)[:, None]
    scores.add("two", energy, torch.ones(5, 96, 1))
    assert scores.kept({"one": 3, "x": 1, "two": 5})["one"] == (1, 3, 4)


def test_kept_when_scores_tie_then_the_lower_indices(plan: ChannelPlan) -> None:
    assert ChannelScores(plan).kept({"one": 2, "x": 1, "two": 5})["one"] == (0, 1)


def test_kept_when_keeping_more_then_supersets(plan: ChannelPlan) -> None:
    scores = ChannelScores(plan)
    scores.add("two", torch.rand(96, 1), torch.randn(5, 96, 1))
    sets = [set(scores.kept({"one": count, "x": 1, "two": 5})["one"]) for count in range(1, 7)]
    assert all(small < large for small, large in itertools.pairwise(sets))


def test_scores_when_a_residual_group_has_several_consumers_then_all_count() -> None:
    opened = trained()
    scores = ChannelScores(opened.slicer.plan)
    group = next(g for g in opened.graph.groups if "stem" in g.producers)
    assert len(group.consumers) >= 2
    for layer in group.consumers:
        weight = opened.folded.get_submodule(layer).weight.detach()
        before = scores.of(group.id)
        scores.add(layer, torch.ones(group.channels, 9), weight.flatten(2))
        assert (scores.of(group.id) > before).all()
