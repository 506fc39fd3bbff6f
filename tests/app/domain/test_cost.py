"""Costs: worked examples, monotonicity, liveness."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.cost import METRICS, count, layer_costs, peak_activation_bytes, reference_costs
from app.domain.device import MemoryPool, Overheads, Power
from app.domain.latency import padded
from app.domain.space import Assignment, build_space, multiple_violations, widest
from tests.app.domain.drawings import profile, skip, two_convs


def chosen(keep: dict[str, int], weights: dict[str, int], activations: dict[str, int]) -> Assignment:
    return Assignment(keep, weights, activations)


def test_bops_when_the_worked_example_is_counted_then_17_694_720() -> None:
    graph, device = two_convs(), profile()
    one = chosen({"g1": 12, "g2": 16}, {"conv1": 4, "conv2": 4}, {"input": 8, "relu1": 4, "relu2": 32})
    costs = count(graph, one, device)
    assert costs.bops == 17_694_720
    assert costs.macs == 12 * 27 * 1024 + 16 * 12 * 9 * 256
    full = count(graph, widest(graph, 32), device)
    assert full.macs == 442_368 + 1_179_648
    assert full.bops == 1_660_944_384
    assert costs.bops / full.bops == pytest.approx(0.010653, abs=5e-7)


def test_weight_bytes_when_counted_by_hand_then_packed_integers_scales_and_biases() -> None:
    graph = two_convs()
    one = chosen({"g1": 5, "g2": 3}, {"conv1": 2, "conv2": 8}, {"input": 8, "relu1": 8, "relu2": 32})
    rows = layer_costs(graph, one, profile())
    assert rows[0].weight_bytes == 34 + 5 * 4 + 5 * 4  # 135 weights of 2 bits are 33.75 bytes
    assert rows[1].weight_bytes == 135 + 3 * 4 + 3 * 4
    per_tensor = layer_costs(graph, one, profile(per_channel_weights=()))
    assert per_tensor[0].weight_bytes == 34 + 4 + 20
    stored = layer_costs(graph, one, profile(storage_bits={2: 4}))
    assert stored[0].weight_bytes == 68 + 40
    floats = layer_costs(graph, widest(graph, 32), profile())
    assert floats[0].weight_bytes == 432 * 4 + 16 * 4


def test_depthwise_when_half_is_kept_then_macs_halve_once() -> None:
    graph = skip()
    keep = {"t": 4, "i": 8}
    full, half = (layer_costs(graph, replace(widest(graph, 8), keep=k), profile()) for k in ({"t": 8, "i": 8}, keep))
    assert full[3].macs == 8 * 9 * 16
    assert half[3].macs == 4 * 9 * 16
    assert half[1].macs == 4 * 8 * 9 * 16


def test_peak_when_a_skip_tensor_stays_alive_then_it_counts() -> None:
    graph, one = skip(), widest(skip(), 8)
    assert peak_activation_bytes(graph, one) == 3 * 128  # a, c and d at the addition
    narrow = replace(one, activation_bits={**one.activation_bits, "a": 4})
    assert peak_activation_bytes(graph, narrow) == 2 * 128 + 64
    short = replace(graph, activations=tuple(replace(x, last_step=min(x.last_step, 2)) for x in graph.activations[:3]))
    assert peak_activation_bytes(short, one) == 2 * 128


def test_latency_when_a_layer_is_bound_by_memory_or_compute_then_the_slower_counts() -> None:
    graph, one = two_convs(), widest(two_convs(), 8)
    row = layer_costs(graph, one, profile())[1]
    assert row.latency_ms == pytest.approx(1_179_648 / 0.5e9 * 1e3 + 1e-3)
    slow = profile(weight_store=MemoryPool(None, 0.001))
    moved = (4608 + 32 * 8) / 0.001e9 + (16 * 1024 + 32 * 256) / 1e9
    assert layer_costs(graph, one, slow)[1].latency_ms == pytest.approx(moved * 1e3 + 1e-3)
    padded_up = profile(channel_multiple={"default": 24})
    assert layer_costs(graph, one, padded_up)[1].latency_ms == pytest.approx(48 * 24 * 9 * 256 / 0.5e9 * 1e3 + 1e-3)
    assert layer_costs(graph, one, padded_up)[1].macs == row.macs
    total = count(graph, one, profile(overheads=Overheads(500.0, 0.0, 0.0))).latency_ms
    assert total == pytest.approx(0.5 + (442_368 + 1_179_648) / 0.5e9 * 1e3)


def test_energy_when_the_profile_has_no_power_then_zero() -> None:
    assert count(two_convs(), widest(two_convs(), 8), profile(power=Power())).energy_mj == 0.0


@given(st.integers(1, 4096), st.integers(1, 64))
def test_padding_when_applied_then_the_next_multiple(channels: int, multiple: int) -> None:
    found = padded(channels, multiple)
    assert found % multiple == 0
    assert channels <= found < channels + multiple


@given(st.data())
def test_costs_when_one_choice_grows_then_no_metric_falls(data: st.DataObject) -> None:
    graph, device = data.draw(st.sampled_from([two_convs(), skip()])), profile()
    space = build_space(graph, device)
    small = Assignment(
        {name: data.draw(st.sampled_from(options)) for name, options in space.keep.items()},
        {name: data.draw(st.sampled_from(options)) for name, options in space.weight_bits.items()},
        {name: data.draw(st.sampled_from(options)) for name, options in space.activation_bits.items()},
    )
    larger = Assignment(
        {n: data.draw(st.sampled_from([c for c in space.keep[n] if c >= v])) for n, v in small.keep.items()},
        {
            n: data.draw(st.sampled_from([c for c in space.weight_bits[n] if c >= v]))
            for n, v in small.weight_bits.items()
        },
        {
            n: data.draw(st.sampled_from([c for c in space.activation_bits[n] if c >= v]))
            for n, v in small.activation_bits.items()
        },
    )
    low, high = count(graph, small, device), count(graph, larger, device)
    for metric in METRICS:
        assert low.value(metric) <= high.value(metric) * (1 + 1e-12)


def test_reference_costs_when_several_are_named_then_each_is_counted() -> None:
    graph = two_convs()
    found = reference_costs(graph, profile(), {"w8a8": widest(graph, 8), "float": widest(graph, 32)})
    assert found["float"].bops == 16 * found["w8a8"].bops
    assert set(found["float"].to_json()) == set(METRICS)


def test_latency_when_channels_can_be_skipped_then_none_is_padded_and_any_count_may_stay() -> None:
    graph, rules = two_convs(), {"default": 24}
    padding, skipping = profile(channel_multiple=rules), profile(channel_multiple=rules, skippable_channels=True)
    one = replace(widest(graph, 8), keep={**widest(graph, 8).keep, "g1": 7})
    assert count(graph, one, skipping) == count(graph, one, profile(channel_multiple={"default": 1}))
    assert count(graph, one, skipping).latency_ms < count(graph, one, padding).latency_ms
    assert (len(multiple_violations(graph, one, padding)), multiple_violations(graph, one, skipping)) == (2, [])
    assert set(build_space(graph, skipping).keep["g1"]) > set(build_space(graph, padding).keep["g1"])
