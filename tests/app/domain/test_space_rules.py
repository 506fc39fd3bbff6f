"""Rules of a space by name pattern: with numbers, and that no assignment of a built space breaks one."""

from __future__ import annotations

import fnmatch
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.cost import METRICS, count
from app.domain.device import DeviceProfile
from app.domain.floor import least
from app.domain.graph import ChannelGroup, ModelGraph
from app.domain.space import Assignment, BitRule, SpaceSpec, build_space, ends, is_legal, keep_choices
from tests.app.domain.drawings import profile, skip, two_convs
from tests.app.domain.random_graphs import assignments, devices, networks


def test_max_keeps_when_a_pattern_fits_then_the_full_width_is_gone_there_alone() -> None:
    keep = build_space(two_convs(), profile(), SpaceSpec(max_keeps={"conv1": 0.6, "g*": 0.9})).keep
    assert keep == {"g1": (9, 8, 6, 4, 2), "g2": (28, 24, 20, 16, 12, 8, 4)}


def test_max_keeps_when_the_device_has_a_multiple_then_the_largest_below_it() -> None:
    device = profile(channel_multiple={"default": 4})
    group = ChannelGroup("g", 30, ("p",), ())
    assert keep_choices(group, device, SpaceSpec(max_keeps={"p": 0.7}))[0] == 20
    assert keep_choices(group, device, SpaceSpec(min_keep=0.5, max_keeps={"p": 0.7})) == (20, 16)
    assert keep_choices(ChannelGroup("g", 10, ("p",), ()), profile(), SpaceSpec(max_keeps={"p": 0.7}))[0] == 7


@pytest.mark.parametrize(
    "spec",
    [
        SpaceSpec(max_keeps={"g1": 0.1}),  # below the smallest ratio of all
        SpaceSpec(max_keeps={"g1": 0.5}, min_keeps={"conv1": 0.6}),
        SpaceSpec(max_keeps={"g1": 0.5}, freeze=("g1",)),
        SpaceSpec(max_keeps={"g1": 0.5}, prune=False),
    ],
)
def test_max_keeps_when_another_rule_asks_for_more_then_the_refusal_names_the_group(spec: SpaceSpec) -> None:
    with pytest.raises(ValueError, match="no width is legal for channel group 'g1'"):
        build_space(two_convs(), profile(), spec)


def test_max_keeps_when_channels_cannot_be_removed_then_they_stay() -> None:
    group = ChannelGroup("g", 9, (), (), "network output")
    assert keep_choices(group, profile(), SpaceSpec(max_keeps={"*": 0.5})) == (9,)


def test_bits_when_patterns_fit_then_every_rule_holds_and_the_input_keeps_its_width() -> None:
    rules = {"conv*": BitRule(weight=(8, 4)), "conv2": BitRule(weight=(4, 2), activation=(4,))}
    space = build_space(two_convs(), profile(), SpaceSpec(bits=rules))
    assert space.weight_bits == {"conv1": (8, 4), "conv2": (4,)}
    assert space.activation_bits == {"input": (8,), "relu1": (4,), "relu2": (32,)}
    space = build_space(two_convs(), profile(), SpaceSpec(bits={"conv1": BitRule(activation=(4,))}))
    assert space.activation_bits == {"input": (8,), "relu1": (8, 4), "relu2": (32,)}


def test_bits_when_several_layers_read_one_activation_then_it_suits_them_all() -> None:
    space = build_space(skip(), profile(), SpaceSpec(bits={"conv_c": BitRule(activation=(8,))}))
    assert (space.activation_bits["b"], space.activation_bits["a"]) == ((8,), (8, 4))


@pytest.mark.parametrize(
    "spec",
    [
        SpaceSpec(bits={"conv2": BitRule(weight=(16,))}),
        SpaceSpec(bits={"conv2": BitRule(weight=(4,))}, fixed_bits={"conv2": (8, 8)}),
        SpaceSpec(first_last=16),
    ],
)
def test_bits_when_nothing_is_left_then_the_refusal_names_what_lacks_a_choice(spec: SpaceSpec) -> None:
    with pytest.raises(ValueError, match=r"conv2|relu1"):
        build_space(two_convs(), profile(), spec)


def test_first_last_when_asked_for_then_both_ends_are_wide_and_the_rest_is_free() -> None:
    space = build_space(skip(), profile(), SpaceSpec(first_last=8))
    assert space.weight_bits == {"stem": (8,), "conv_b": (8, 4, 2), "conv_c": (8, 4, 2), "deep": (8,)}
    assert space.activation_bits == {"input": (8,), "a": (8, 4), "b": (8, 4), "c": (8, 4), "d": (8,), "e": (32,)}
    assert ends(skip()) == {"stem", "deep"}
    four = build_space(skip(), profile(), SpaceSpec(first_last=4))
    assert (four.weight_bits["stem"], four.weight_bits["conv_b"]) == ((8, 4), (8, 4, 2))


def broken(graph: ModelGraph, spec: SpaceSpec, one: Assignment) -> list[str]:
    """Return the rules that an assignment breaks, looked up one by one."""
    found = []
    for group in graph.groups:
        names = (group.id, *group.producers)
        for pattern, most in spec.max_keeps.items():
            if group.frozen is None and any(fnmatch.fnmatchcase(name, pattern) for name in names):
                found += [f"{group.id} > {most}"] if one.keep[group.id] > most * group.channels + 1e-6 else []
        for pattern, smallest in spec.min_keeps.items():
            if any(fnmatch.fnmatchcase(name, pattern) for name in names):
                found += [f"{group.id} < {smallest}"] if one.keep[group.id] < smallest * group.channels - 1e-6 else []
    return found + broken_bits(graph, spec, one)


def broken_bits(graph: ModelGraph, spec: SpaceSpec, one: Assignment) -> list[str]:
    found = []
    for layer in graph.layers:
        w, a = one.weight_bits[layer.name], one.activation_bits[layer.input]
        is_input = graph.activation[layer.input].role == "input"
        for pattern, rule in spec.bits.items():
            if fnmatch.fnmatchcase(layer.name, pattern):
                found += [layer.name] if rule.weight is not None and w not in rule.weight else []
                found += [layer.input] if rule.activation and not is_input and a not in rule.activation else []
    for layer in (graph.layers[0], graph.layers[-1]):
        if spec.first_last is not None and one.weight_bits[layer.name] < spec.first_last:
            found.append(f"{layer.name} narrow")
    return found


@st.composite
def specs(draw: st.DrawFn, graph: ModelGraph, device: DeviceProfile) -> SpaceSpec:
    names = [layer.name for layer in graph.layers]
    both = ["*", *names, *(group.id for group in graph.groups)]
    widths = st.lists(st.sampled_from([2, 4, 8, 16]), min_size=1, max_size=4, unique=True).map(tuple)
    rule = st.builds(BitRule, st.none() | widths, st.none() | widths)
    ratio = st.floats(0.05, 1.0)

    def by(keys: list[str], values: st.SearchStrategy[Any]) -> dict[str, Any]:
        return draw(st.dictionaries(st.sampled_from(keys), values, max_size=2))

    return SpaceSpec(
        min_keep=0.05,
        min_keeps=by(both, ratio),
        max_keeps=by(both, ratio),
        bits=by(["*", *names], rule),
        first_last=draw(st.sampled_from([None, 4, 8])),
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_space_when_built_under_any_rules_then_no_assignment_of_it_breaks_one(data: st.DataObject) -> None:
    (graph, _), device = data.draw(networks()), data.draw(devices())
    spec = data.draw(specs(graph, device))
    try:
        space = build_space(graph, device, spec)
    except ValueError as refusal:
        assert "legal for" in str(refusal)
        return
    one = data.draw(assignments(space))
    assert broken(graph, spec, one) == []
    if is_legal(graph, space, one, device):
        floor, costs = least(graph, space, device), count(graph, one, device)
        assert all(floor.value(metric) <= costs.value(metric) * (1 + 1e-9) for metric in METRICS)
