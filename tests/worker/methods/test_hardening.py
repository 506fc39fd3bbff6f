"""From learned numbers to a legal assignment: the nearest one, and the nearest one inside a budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.budget import Budget
from app.domain.cost import METRICS, count
from app.domain.graph import ModelGraph
from app.domain.space import build_space, cheapest, is_legal
from tests.worker.search.pictures import chain, device, resnet
from worker.methods.hardening import Learned, best, hardened

FREE = Budget({})


def learned(graph: ModelGraph, above: int, bits: float) -> Learned:
    """Return channels of which the first `above` exceed the threshold, and the same width everywhere."""
    margins = {g.id: torch.where(torch.arange(g.channels) < above, 1.0, -1.0) for g in graph.prunable}
    hidden = [item.id for item in graph.activations if item.role == "hidden"]
    return Learned(margins, {layer.name: bits for layer in graph.layers}, dict.fromkeys(hidden, bits))


def test_assignment_when_nothing_limits_it_then_the_nearest_widths_and_the_channels_above_the_threshold() -> None:
    graph, profile = chain((8, 16, 16)), device()
    found = hardened(learned(graph, 8, 3.1), graph, build_space(graph, profile), profile, FREE)
    assert found is not None
    assert found.assignment.keep == {"g0": 8, "g1": 8, "g2": 8, "g_head": 5}
    assert set(found.assignment.weight_bits.values()) == {4}
    assert found.kept["g1"] == tuple(range(8)) and found.kept["g_head"] == tuple(range(5))


def test_channels_when_their_number_is_not_legal_then_the_next_one_up() -> None:
    graph, profile = chain((8, 16, 16)), device(multiple=8)
    found = hardened(learned(graph, 9, 8.0), graph, build_space(graph, profile), profile, FREE)
    assert found is not None
    assert found.assignment.keep["g1"] == 16


def test_widths_when_a_pair_is_not_legal_then_a_legal_pair_near_by() -> None:
    graph, profile = chain(), device(((8, 8), (4, 4)))
    one = learned(graph, 16, 8.0)
    mixed = Learned(one.margins, {**one.weight_bits, "conv1": 4.0}, one.activation_bits)
    space = build_space(graph, profile)
    found = hardened(mixed, graph, space, profile, FREE)
    assert found is not None and is_legal(graph, space, found.assignment, profile)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(METRICS), st.floats(0.05, 0.9), st.integers(1, 64), st.floats(2.0, 8.0))
def test_assignment_when_a_limit_is_tight_then_it_is_kept(metric: str, share: float, above: int, bits: float) -> None:
    graph, profile = resnet(), device()
    space = build_space(graph, profile)
    free = hardened(learned(graph, above, bits), graph, space, profile, FREE)
    assert free is not None
    low, high = (count(graph, x, profile).value(metric) for x in (cheapest(graph, space), free.assignment))
    budget = Budget({metric: low + share * max(0.0, high - low)})
    found = hardened(learned(graph, above, bits), graph, space, profile, budget)
    assert found is not None
    assert budget.is_met(count(graph, found.assignment, profile))


def test_assignment_when_no_budget_can_be_kept_then_none() -> None:
    graph, profile = chain(), device()
    assert hardened(learned(graph, 8, 4.0), graph, build_space(graph, profile), profile, Budget({"macs": 10.0})) is None


@pytest.mark.parametrize(("count", "kept"), [(1, (2,)), (2, (0, 2)), (3, (0, 1, 2)), (4, (0, 1, 2, 3))])
def test_best_when_margins_are_equal_then_the_first(count: int, kept: tuple[int, ...]) -> None:
    assert best(torch.tensor([0.5, 0.5, 2.0, -1.0]), count) == kept
