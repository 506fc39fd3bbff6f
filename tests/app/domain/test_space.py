"""The space: legality, freezing, fixed bits, identity of assignments."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.graph import ChannelGroup
from app.domain.space import (
    Assignment,
    SearchSpace,
    SpaceSpec,
    build_space,
    cheapest,
    keep_choices,
    multiple_violations,
    widest,
)
from tests.app.domain.drawings import PAIRS, profile, skip, two_convs
from tests.app.domain.random_graphs import assignments, devices, networks


@given(st.integers(1, 600), st.sampled_from([1, 2, 4, 8, 16, 32]), st.floats(0.05, 1.0))
def test_keep_choices_when_drawn_then_descending_within_bounds_and_on_the_multiple(
    channels: int, multiple: int, floor: float
) -> None:
    device = profile(channel_multiple={"default": multiple})
    found = keep_choices(ChannelGroup("g", channels, ("p",), ()), device, SpaceSpec(min_keep=floor))
    assert found[0] == channels
    assert list(found) == sorted(set(found), reverse=True)
    assert all(1 <= count <= channels and count >= floor * channels - 1e-9 for count in found)
    assert all(count % multiple == 0 for count in found[1:])
    below = channels // multiple * multiple
    assert below in found or below < max(1, floor * channels)


@pytest.mark.parametrize("spec", [SpaceSpec(prune=False), SpaceSpec(freeze=("conv*",)), SpaceSpec(freeze=("g[12]",))])
def test_keep_choices_when_pruning_is_off_or_frozen_then_full_width_only(spec: SpaceSpec) -> None:
    assert build_space(two_convs(), profile(), spec).keep == {"g1": (16,), "g2": (32,)}


@pytest.mark.parametrize("pattern", ["g1", "conv1", "*1"])
def test_keep_choices_when_a_pattern_asks_for_more_then_its_groups_only(pattern: str) -> None:
    spec = SpaceSpec(min_keep=0.5, min_keeps={pattern: 0.7, "*": 0.25})
    keep = build_space(two_convs(), profile(), spec).keep
    assert keep == {"g1": (16, 14, 12), "g2": (32, 28, 24, 20, 16)}


def test_keep_choices_when_the_group_is_frozen_by_the_graph_then_full_width_only() -> None:
    assert keep_choices(ChannelGroup("g", 9, (), (), "network output"), profile(), SpaceSpec()) == (9,)


def test_space_when_built_then_input_and_output_take_the_devices_width() -> None:
    space = build_space(two_convs(), profile())
    assert space.activation_bits == {"input": (8,), "relu1": (8, 4), "relu2": (32,)}
    assert space.weight_bits == {"conv1": (8, 4, 2), "conv2": (8, 4, 2)}
    assert space.keep["g1"] == (16, 14, 12, 10, 8, 6, 4, 2)
    assert space.size_log10 == pytest.approx(3.0615, abs=1e-4)  # 8 * 8 widths, 3 * 3 weight and 2 activation widths


def test_space_when_bits_are_restricted_then_the_input_keeps_its_width() -> None:
    space = build_space(two_convs(), profile(), SpaceSpec(weight_bits=(4, 2), activation_bits=(4,)))
    assert space.activation_bits == {"input": (8,), "relu1": (4,), "relu2": (32,)}
    assert space.weight_bits == {"conv1": (4, 2), "conv2": (4, 2)}


def test_space_when_bits_are_fixed_then_the_pair_and_its_input_are() -> None:
    space = build_space(two_convs(), profile(), SpaceSpec(fixed_bits={"conv2": (8, 8)}))
    assert space.weight_bits["conv2"] == (8,)
    assert space.activation_bits["relu1"] == (8,)


def test_space_when_no_pair_is_left_then_the_refusal_names_layer_or_activation() -> None:
    with pytest.raises(ValueError, match="relu1"):
        build_space(two_convs(), profile(), SpaceSpec(activation_bits=(2,)))
    with pytest.raises(ValueError, match="conv1"):
        build_space(two_convs(), profile(), SpaceSpec(fixed_bits={"conv1": (4, 4)}))


@given(st.lists(st.sampled_from(PAIRS), min_size=1, max_size=6, unique=True))
def test_space_when_pairs_are_any_then_every_choice_has_a_legal_partner(pairs: list[tuple[int, int]]) -> None:
    device = profile(pairs={"default": tuple(pairs)})
    graph = skip()
    try:
        space = build_space(graph, device)
    except ValueError:
        assert 8 not in {a for _, a in pairs}  # the network input is 8 bits wide
        return
    for layer in graph.layers:
        for a in space.activation_bits[layer.input]:
            assert any((w, a) in space.pairs[layer.name] for w in space.weight_bits[layer.name])


def test_cheapest_and_widest_when_taken_then_the_ends_of_the_space() -> None:
    graph = two_convs()
    space = build_space(graph, profile())
    low = cheapest(graph, space)
    assert low.keep == {"g1": 2, "g2": 4}
    assert low.weight_bits == {"conv1": 2, "conv2": 2}
    assert low.activation_bits == {"input": 8, "relu1": 4, "relu2": 32}
    assert widest(graph, 32).activation_bits == {"input": 32, "relu1": 32, "relu2": 32}


def test_digest_when_keys_are_ordered_otherwise_then_equal_and_otherwise_different() -> None:
    one = Assignment({"a": 1, "b": 2}, {"x": 8}, {"y": 4})
    same = Assignment({"b": 2, "a": 1}, {"x": 8}, {"y": 4})
    other = Assignment({"a": 2, "b": 1}, {"x": 8}, {"y": 4})
    assert one.digest == same.digest != other.digest
    assert len(one.digest) == 64
    assert Assignment.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_keep_choices_when_the_multiple_depends_on_bits_then_it_suits_all_of_them() -> None:
    device = profile(channel_multiple={"default": 8, "w4": 16, "w2": 24})
    group = ChannelGroup("g", 65, ("p",), ())
    assert keep_choices(group, device, SpaceSpec(), (8, 4)) == (65, 64, 48, 32, 16)
    assert keep_choices(group, device, SpaceSpec(), (8, 4, 2)) == (65, 48)
    assert keep_choices(ChannelGroup("g", 12, ("p",), ()), device, SpaceSpec(), (4,)) == (12,)


def test_violations_when_a_group_is_cut_between_multiples_then_its_layers_are_named() -> None:
    graph, device = two_convs(), profile(channel_multiple={"default": 4, "w2": 16})
    full = widest(graph, 8)
    assert multiple_violations(graph, full, device) == []
    cut = replace(full, keep={"g1": 12, "g2": 30}, weight_bits={"conv1": 8, "conv2": 2})
    assert multiple_violations(graph, cut, device) == [
        "conv2: 12 channels of group 'g1' are no multiple of 16 (2-bit weights)",
        "conv2: 30 channels of group 'g2' are no multiple of 16 (2-bit weights)",
    ]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_violations_when_any_point_of_a_space_is_taken_then_none(data: st.DataObject) -> None:
    (graph, _), device = data.draw(networks()), data.draw(devices())
    one = data.draw(assignments(build_space(graph, device)))
    assert multiple_violations(graph, one, device) == []


def test_space_when_written_and_read_back_then_the_same() -> None:
    space = SearchSpace({"g": (16, 8)}, {"conv": (8, 4)}, {"x": (8,)}, {"conv": frozenset({(8, 8), (4, 8)})})
    assert SearchSpace.from_json(json.loads(json.dumps(space.to_json()))) == space
