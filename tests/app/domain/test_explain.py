"""Why a network is not faster: parts, bounds, the changes that save most, and honest words about slow int8."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.cost import count
from app.domain.device import Fallback, MemoryPool, Overheads, Sparsity, Throughput
from app.domain.explain import explain
from app.domain.graph import Step, Width
from app.domain.space import build_space, multiple_violations, widest
from tests.app.domain.drawings import profile, skip, two_convs
from tests.app.domain.random_graphs import assignments, devices, networks

EVEN = (Throughput(8, 8, 1.0, {"default": 0.5}), Throughput(32, 32, 1.0, {"default": 0.5}))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_why_when_explained_then_shares_and_the_rest_add_up_and_savings_are_real(data: st.DataObject) -> None:
    (graph, _), device = data.draw(networks()), data.draw(devices())
    space = build_space(graph, device)
    one = data.draw(assignments(space))
    costs, found = count(graph, one, device), explain(graph, one, device, space).to_json()
    rest = sum(found["network"].values())
    assert found["latency_ms"] == pytest.approx(costs.latency_ms, rel=1e-9)
    assert sum(found["parts"].values()) == pytest.approx(costs.latency_ms, rel=1e-9)
    assert sum(op["latency_ms"] for op in found["operations"]) + rest == pytest.approx(costs.latency_ms, rel=1e-9)
    assert len(found["operations"]) == len(graph.ops)
    savings = [change["saving_ms"] for change in found["changes"]]
    assert len(savings) <= 3 and savings == sorted(savings, reverse=True)
    for change in found["changes"]:
        if change["kind"] == "sparsity":  # no choice of an assignment; it has a test of its own
            continue
        part = {"keep": "keep", "round": "keep", "weight_bits": "weight_bits"}.get(change["kind"], "activation_bits")
        held = getattr(one, part)
        assert held[change["target"]] == change["before"]
        changed = replace(one, **{part: {**held, change["target"]: change["after"]}})
        saved = costs.latency_ms - count(graph, changed, device).latency_ms
        assert saved == pytest.approx(change["saving_ms"], rel=1e-6)
        assert multiple_violations(graph, changed, device) == []


def test_why_when_a_width_is_just_above_the_multiple_then_padding_bounds_it_and_rounding_saves_most() -> None:
    graph = two_convs()
    device = profile(channel_multiple={"default": 15}, activation_pool=MemoryPool(None, 100.0))
    found = explain(graph, widest(graph, 8), device, build_space(graph, device)).to_json()
    second = next(op for op in found["operations"] if op["name"] == "conv2")
    # 16 -> 30 input columns, 32 -> 45 rows: 2.6 times the MACs
    assert second["bound"] == "padding"
    assert second["parts"]["padding"] == pytest.approx((45 * 30 / (32 * 16) - 1) * second["parts"]["compute"])
    best = found["changes"][0]
    assert (best["kind"], best["target"], best["before"], best["after"]) == ("round", "g1", 16, 15)
    assert best["text"] == "round the 16 channels of g1 to 15, on the device's multiple"


def test_why_when_int8_is_slower_than_float_for_a_tiny_network_then_it_says_so_and_what_for() -> None:
    graph = skip()
    device = profile(compute=EVEN, overheads=Overheads(50.0, 5.0, 0.0, 4.0, 0.0))
    mixed = replace(widest(graph, 8), activation_bits={"input": 8, "a": 4, "b": 8, "c": 4, "d": 8, "e": 32})
    found = explain(graph, mixed, device, build_space(graph, device))
    assert found.latency_ms > found.references["float"].parts.total
    assert found.verdict.startswith("not faster than the float network (0.")
    assert "overhead: fixed times" in found.verdict


def test_why_when_boundaries_dominate_then_moving_one_is_named_with_what_it_saves() -> None:
    graph = skip()
    device = profile(compute=EVEN, overheads=Overheads(0.0, 0.0, 0.0, 40.0, 0.0))
    mixed = replace(widest(graph, 8), activation_bits={"input": 8, "a": 8, "b": 4, "c": 8, "d": 8, "e": 32})
    found = explain(graph, mixed, device, build_space(graph, device)).to_json()
    assert found["bound"] == "boundary"
    assert found["parts"]["boundary"] == pytest.approx(3 * 0.04)  # into b, out of b, and to the float output
    best = found["changes"][0]
    assert (best["kind"], best["target"], best["after"]) == ("boundary", "b", 8)
    assert best["saving_ms"] == pytest.approx(2 * 0.04, rel=0.01)


def test_why_when_operations_fall_back_then_each_run_pays_two_crossings_once() -> None:
    steps = (
        Step("gelu", "gelu", ("relu2",), "relu2", Width((("g2", 1),)), 256, step=3),
        Step("soft", "softmax", ("relu2",), "relu2", Width((("g2", 1),)), 256, step=4),
    )
    graph = replace(two_convs(), steps=steps)
    graph = replace(graph, layers=tuple(replace(x, step=i + 1) for i, x in enumerate(graph.layers)))
    device = profile(fallback=Fallback(frozenset({"gelu", "softmax"}), 0.001, 300.0))
    found = explain(graph, widest(graph, 8), device, build_space(graph, device)).to_json()
    assert found["parts"]["fallback"] == pytest.approx(2 * 0.3 + 2 * 32 * 256 / 1e6 * 1e3)
    assert found["operations"][0]["bound"] == "fallback"
    assert found["bound"] == "fallback"


def test_why_when_the_device_computes_a_pattern_faster_then_names_what_it_would_save_on_arithmetic_alone() -> None:
    graph = two_convs()
    plain = profile(activation_pool=MemoryPool(None, 1e6), weight_store=MemoryPool(None, 1e6))
    device = replace(plain, sparsity=Sparsity("2:4", 2.0))
    eight = widest(graph, 8)
    found = explain(graph, eight, device, build_space(graph, device), best=99).to_json()
    change = next(item for item in found["changes"] if item["kind"] == "sparsity")
    arithmetic = found["parts"]["compute"] + found["parts"]["padding"]
    assert change["saving_ms"] == pytest.approx(arithmetic / 2, rel=1e-3)
    assert change["text"].startswith("keep 2 of every 4 weights of all layers")
    assert found["latency_ms"] == explain(graph, eight, plain, build_space(graph, plain)).latency_ms, "dense as it is"
