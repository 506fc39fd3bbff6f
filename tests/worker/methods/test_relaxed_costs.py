"""Relaxed costs on random networks and devices: exact where choices are whole, with the right slopes between."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.cost import METRICS, count
from app.domain.graph import ModelGraph
from app.domain.space import SpaceSpec, build_space, widest
from tests.app.domain.random_graphs import assignments, built_in, devices, networks
from tests.worker.search.pictures import device, resnet
from worker.methods.relaxed_costs import RelaxedCosts, Soft
from worker.search.sensitivity import reference

COUNTED = ("macs", "bops", "weight_bytes", "peak_activation_bytes")


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_costs_when_choices_are_whole_then_what_the_cost_model_counts(data: st.DataObject) -> None:
    (graph, _), profile = data.draw(networks()), data.draw(devices())
    space = build_space(graph, profile)
    one = data.draw(assignments(space))
    found = RelaxedCosts(graph, profile, space).costs(Soft.at(graph, one), METRICS)
    counted = count(graph, one, profile)
    for metric in COUNTED:
        assert found[metric].item() == counted.value(metric), metric
    for metric in ("latency_ms", "energy_mj"):
        assert found[metric].item() == pytest.approx(counted.value(metric), rel=1e-12), metric


@pytest.mark.parametrize("name", ["generic-npu", "ethos-u55-128", "onnxruntime-cpu"])
def test_costs_when_the_network_is_left_float_then_still_exact(name: str) -> None:
    graph, profile = resnet(), built_in(name)
    found = RelaxedCosts(graph, profile, build_space(graph, profile)).costs(Soft.at(graph, widest(graph, 32)), COUNTED)
    counted = count(graph, widest(graph, 32), profile)
    assert {metric: value.item() for metric, value in found.items()} == {m: counted.value(m) for m in COUNTED}


def soft_point(seed: int, graph: ModelGraph) -> Soft:
    rng = np.random.default_rng(seed)
    parts = (
        [rng.uniform(2, group.channels) for group in graph.groups],
        [rng.uniform(2.1, 7.9) for _ in graph.layers],
        [rng.uniform(4.1, 7.9) for _ in graph.activations],
    )
    return Soft(*(torch.tensor(part, dtype=torch.float64, requires_grad=True) for part in parts))


@pytest.mark.parametrize("metric", ["macs", "bops"])
def test_gradients_when_compared_with_differences_then_equal(metric: str) -> None:
    graph, profile = resnet(), device()
    costs, soft = RelaxedCosts(graph, profile, build_space(graph, profile)), soft_point(0, graph)
    costs.costs(soft, [metric])[metric].backward()
    for name in ("keep", "weight_bits", "activation_bits"):
        part = getattr(soft, name)
        got = torch.zeros_like(part) if part.grad is None else part.grad
        for index in range(len(part)):
            ends = []
            for side in (1e-3, -1e-3):
                moved = part.detach().clone()
                moved[index] += side
                ends.append(costs.costs(replace(soft, **{name: moved}), [metric])[metric].item())
            assert got[index].item() == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=1e-6, abs=1e-3)


def test_weight_bytes_when_bits_are_in_between_then_straight_from_one_legal_width_to_the_next() -> None:
    graph = resnet()
    profile = built_in("generic-npu")
    space = build_space(graph, profile, SpaceSpec(weight_bits=(4, 8)))
    costs = RelaxedCosts(graph, profile, space)

    def bytes_at(bits: float) -> float:
        ends = widest(graph, 8)
        soft = Soft.of(graph, ends.keep, dict.fromkeys(ends.weight_bits, bits), ends.activation_bits)
        return costs.costs(soft, ["weight_bytes"])["weight_bytes"].item()

    assert bytes_at(5.0) == pytest.approx(0.75 * bytes_at(4.0) + 0.25 * bytes_at(8.0), abs=len(graph.layers))
    assert bytes_at(3.0) == bytes_at(4.0)  # stored no narrower


def test_weight_bytes_when_differentiated_then_channels_and_bits_share_the_rounded_bytes() -> None:
    graph, profile = resnet(), device()
    soft = soft_point(1, graph)
    RelaxedCosts(graph, profile, build_space(graph, profile)).costs(soft, ["weight_bytes"])["weight_bytes"].backward()
    head = graph.layer["head"]
    ins = head.in_width.kept(dict(zip(graph.group, soft.keep.tolist(), strict=True)))
    row = list(graph.layer).index("head")
    assert soft.weight_bits.grad is not None
    outs = soft.keep.detach()[list(graph.group).index("g_head")].item()
    assert soft.weight_bits.grad[row].item() == pytest.approx(ins * outs / 8, rel=1e-9)


@pytest.mark.parametrize("metric", ["latency_ms", "energy_mj"])
def test_secant_when_it_leads_to_the_next_choice_then_there_it_is_exact(metric: str) -> None:
    graph, profile = resnet(), device()
    space = build_space(graph, profile)
    costs = RelaxedCosts(graph, profile, space)
    base = reference(graph, space)
    for name in ("g_s1b0", "g_s2"):
        wide, narrow = space.keep[name][:2]
        keep = {**base.keep, name: wide - 0.49 * (wide - narrow)}
        near = Soft.of(graph, keep, base.weight_bits, base.activation_bits)
        ends = [count(graph, replace(base, keep={**base.keep, name: kept}), profile) for kept in (wide, narrow)]
        wanted = 0.51 * ends[0].value(metric) + 0.49 * ends[1].value(metric)
        assert costs.costs(near, [metric])[metric].item() == pytest.approx(wanted, rel=1e-9)


def test_secants_when_everything_shrinks_then_no_slope_is_negative() -> None:
    graph, profile = resnet(), device()
    soft = soft_point(2, graph)
    found = RelaxedCosts(graph, profile, build_space(graph, profile)).costs(soft, ["latency_ms", "energy_mj"])
    (found["latency_ms"] + found["energy_mj"]).backward()
    for part in (soft.keep, soft.weight_bits, soft.activation_bits):
        assert part.grad is not None and bool((part.grad >= -1e-12).all())


def test_costs_when_a_metric_is_unknown_then_its_name_is_said() -> None:
    graph, profile = resnet(), device()
    with pytest.raises(KeyError, match="parameters"):
        RelaxedCosts(graph, profile, build_space(graph, profile)).costs(
            Soft.at(graph, widest(graph, 8)), ["parameters"]
        )


def test_costs_when_asked_in_every_step_then_a_few_milliseconds() -> None:
    graph, profile = resnet(blocks=3), device()
    costs, spent = RelaxedCosts(graph, profile, build_space(graph, profile)), []
    for seed in range(10):
        soft = soft_point(seed, graph)
        start = time.process_time()
        torch.stack(list(costs.costs(soft, COUNTED).values())).sum().backward()
        spent.append(time.process_time() - start)
    assert min(spent) < 0.05
