"""Laws of the cost model on random networks and devices: parts add up, less never costs more, peaks are real."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from app.domain.cost import METRICS, Costs, breakdown, count, peak_activation_bytes
from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.domain.kernels import kernels
from app.domain.roofline import PARTS
from app.domain.space import Assignment, SearchSpace, build_space
from tests.app.domain.random_graphs import TABLE, Call, assignments, devices, networks


def smaller(data: st.DataObject, space: SearchSpace, one: Assignment, bits: bool) -> Assignment:
    """Draw an assignment with at most as many channels as `one`, and at most as many bits or just as many."""
    keep = {
        name: data.draw(st.sampled_from([c for c in space.keep[name] if c <= kept])) for name, kept in one.keep.items()
    }
    if not bits:
        return replace(one, keep=keep)

    def fewer(choices: Sequence[int], most: int) -> int:
        return data.draw(st.sampled_from([c for c in choices if c <= most]))

    return Assignment(
        keep,
        {name: fewer(space.weight_bits[name], most) for name, most in one.weight_bits.items()},
        {name: fewer(space.activation_bits[name], most) for name, most in one.activation_bits.items()},
    )


def drawn(data: st.DataObject) -> tuple[ModelGraph, tuple[Call, ...], DeviceProfile, SearchSpace, Assignment]:
    (graph, program), device = data.draw(networks()), data.draw(devices())
    space = build_space(graph, device)
    return graph, program, device, space, data.draw(assignments(space))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_parts_when_added_then_the_latency_of_the_network_and_none_is_negative(data: st.DataObject) -> None:
    graph, _, device, _, one = drawn(data)
    found, costs = breakdown(graph, one, device), count(graph, one, device)
    assert sum(found.parts.to_json().values()) == pytest.approx(costs.latency_ms, rel=1e-9)
    for op in found.ops:
        assert sum(op.parts.to_json().values()) == pytest.approx(op.latency_ms, rel=1e-12)
        assert all(getattr(op.parts, part) >= -1e-15 for part in PARTS)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_costs_when_channels_go_then_no_metric_rises(data: st.DataObject) -> None:
    graph, _, device, space, one = drawn(data)
    assert_at_most(count(graph, smaller(data, space, one, bits=False), device), count(graph, one, device))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_costs_when_bits_and_channels_go_then_no_metric_rises_but_for_boundaries_and_multiples(
    data: st.DataObject,
) -> None:
    graph, _, device, space, one = drawn(data)
    assume(device.table is None)  # measured kernels: a Clip stands behind each tensor below 8 bits
    free = replace(device.overheads, boundary_us=0.0, boundary_ns_per_element=0.0)
    even = replace(device, overheads=free, channel_multiple={"default": device.channel_multiple_for(8)})
    assert_at_most(count(graph, smaller(data, space, one, bits=True), even), count(graph, one, even))


def assert_at_most(low: Costs, high: Costs) -> None:
    for metric in METRICS:
        assert low.value(metric) <= high.value(metric) * (1 + 1e-12), metric


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_peak_when_the_program_is_executed_then_equals_the_most_that_was_alive(data: st.DataObject) -> None:
    graph, program, _, _, one = drawn(data)
    assert peak_activation_bytes(graph, one) == executed_peak(graph, program, one)


def executed_peak(graph: ModelGraph, program: Sequence[Call], one: Assignment) -> int:
    """Run the program with a real buffer per value, drop each when nothing is left to read it, and watch the total."""
    alive: dict[str, bytearray] = {}
    peak = 0
    for index, call in enumerate(program):
        value = graph.activation[call.writes]
        elements = sum(one.keep[name] * columns for name, columns in value.width.terms) + value.width.fixed
        assert all(name in alive for name in call.reads)
        alive[call.writes] = bytearray(math.ceil(elements * value.positions * one.activation_bits[value.id] / 8))
        peak = max(peak, sum(len(item) for item in alive.values()))
        unread = {name for later in program[index + 1 :] for name in later.reads}
        alive = {name: item for name, item in alive.items() if name in unread}
    return peak


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_latency_when_the_device_has_a_table_then_that_of_its_kernels(data: st.DataObject) -> None:
    graph, _, device, _, one = drawn(data)
    device = replace(device, table=TABLE)
    found = count(graph, one, device).latency_ms
    assert found == pytest.approx(TABLE.network_ms(kernels(graph, one)), rel=1e-9)
