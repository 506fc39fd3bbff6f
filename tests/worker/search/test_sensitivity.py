"""Probes and the additive table."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.space import build_space
from tests.worker.search.pictures import chain, device, random_table, resnet
from worker.search.sensitivity import SensitivityTable, build_table, monotone, probes, reference


def test_reference_when_the_widest_weights_need_narrow_activations_then_the_pair_stays_legal() -> None:
    graph = chain()
    space = build_space(graph, device(pairs=((8, 8), (16, 4), (4, 4))))
    base = reference(graph, space)
    assert base.weight_bits["conv1"] == 8
    assert base.activation_bits["conv0"] == 8
    assert base.keep == {"g0": 8, "g1": 12, "g2": 16, "g_head": 5}


def test_probes_when_listed_then_each_changes_one_choice_and_every_choice_is_probed() -> None:
    graph = resnet()
    space = build_space(graph, device())
    found = probes(graph, space)
    base = found[0].assignment
    choices = [*space.keep.values(), *space.weight_bits.values(), *space.activation_bits.values()]
    assert len(found) == 1 + sum(len(options) - 1 for options in choices) == 75
    assert len({probe.key for probe in found}) == len(found)
    for probe in found[1:]:
        pairs = [(probe.assignment.keep, base.keep), (probe.assignment.weight_bits, base.weight_bits)]
        pairs.append((probe.assignment.activation_bits, base.activation_bits))
        assert sum(left[name] != right[name] for left, right in pairs for name in left) == 1


@pytest.mark.parametrize("limit", [1, 20, 40])
def test_probes_when_thinned_then_the_limit_is_kept_and_the_cheapest_levels_come_first(limit: int) -> None:
    graph = resnet()
    space = build_space(graph, device())
    found = probes(graph, space, limit)
    assert len(found) == limit
    if limit == 40:
        cheapest = {
            probe.name for probe in found if probe.kind == "keep" and probe.value == min(space.keep[probe.name])
        }
        assert cheapest == {name for name, options in space.keep.items() if len(options) > 1}


def test_table_when_fed_an_additive_loss_then_predicts_it_exactly() -> None:
    graph = resnet()
    space = build_space(graph, device())
    truth = random_table(space, 3)
    table = build_table(graph, space, {p.key: truth.loss(p.assignment) for p in probes(graph, space)})
    rng = np.random.default_rng(0)
    for _ in range(20):
        one = reference(graph, space)
        one = type(one)(
            {name: int(rng.choice(options)) for name, options in space.keep.items()},
            {name: int(rng.choice(options)) for name, options in space.weight_bits.items()},
            {name: int(rng.choice(options)) for name, options in space.activation_bits.items()},
        )
        assert table.loss(one) == pytest.approx(truth.loss(one), rel=1e-9)


def test_table_when_levels_are_left_out_or_fail_then_they_are_interpolated_in_between() -> None:
    graph = resnet()
    space = build_space(graph, device())
    truth = random_table(space, 5)
    measured: dict[str, float | None] = {p.key: truth.loss(p.assignment) for p in probes(graph, space)}
    measured["keep:g_s1:16"] = None
    measured["weight:stem:2"] = math.nan
    curve = build_table(graph, space, measured).curves["keep"]["g_s1"]
    assert curve[20] < curve[16] < curve[12]
    thin = build_table(graph, space, {p.key: measured[p.key] for p in probes(graph, space, 30)}, 30)
    assert all(set(thin.curves["keep"][name]) == set(options) for name, options in space.keep.items())
    assert thin.curves["keep"]["g_s1"][4] == pytest.approx(truth.curves["keep"]["g_s1"][4])


def test_table_when_a_dimension_was_never_measured_then_it_takes_the_median_of_its_kind() -> None:
    graph = chain()
    space = build_space(graph, device())
    measured = {"base::0": 0.0, "weight:conv1:2": 0.4, "weight:conv2:2": 0.2}
    table = build_table(graph, space, measured)
    assert table.curves["weight"]["conv0"][2] == pytest.approx(0.3)
    assert table.curves["keep"]["g0"][1] == 0.0


@given(st.lists(st.floats(0, 50), min_size=1, max_size=9))
def test_monotone_when_given_any_losses_then_starts_at_zero_and_never_falls(losses: list[float]) -> None:
    choices = list(range(len(losses), 0, -1))
    values = list(monotone(choices, losses).values())
    assert values[0] == 0.0
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(values))


def test_table_when_sent_through_json_then_comes_back_equal() -> None:
    table = random_table(build_space(resnet(), device()), 1)
    assert SensitivityTable.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_probes_when_listed_then_in_the_order_of_the_layers_they_change() -> None:
    graph = resnet(blocks=2)
    steps = {layer.name: layer.step for layer in graph.layers}
    born = {item.id: item.first_step for item in graph.activations}
    made = {group.id: min(steps[name] for name in group.producers) for group in graph.groups}
    by_kind = {"keep": made, "weight": steps, "activation": born}
    found = [by_kind[probe.kind][probe.name] for probe in probes(graph, build_space(graph, device()), 40)[1:]]
    assert len(found) == 39
    assert found == sorted(found)
