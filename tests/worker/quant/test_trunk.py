"""The trunk: probes that share what comes before them give the results of probes measured alone, bit for bit."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.space import Assignment, build_space
from tests.worker.quant.digits import data, device, fresh, trained
from worker.graph.sites import quantizer_sites
from worker.quant.compressor import Repair
from worker.quant.trunk import Trunk
from worker.quant.walk import Walk, live_bytes, run
from worker.search.evaluate import Evaluator
from worker.search.sensitivity import Probe, probes


@functools.cache
def alone() -> Evaluator:
    return fresh()


@functools.cache
def listed() -> tuple[Probe, ...]:
    graph = trained().graph
    return tuple(probes(graph, build_space(graph, device())))


def base() -> Assignment:
    return listed()[0].assignment


def trunk(repair: Repair = "fast") -> Trunk:
    pictures = data()["evaluation"].inputs[0][:128]
    return Trunk(alone().compressor, base(), repair, [(part,) for part in pictures.split(50)])


def wanted(assignment: Assignment, repair: Repair = "fast") -> torch.Tensor:
    network = alone().compressor.compress(assignment, repair)
    return torch.cat([network.forward(part) for part in data()["evaluation"].inputs[0][:128].split(50)])


@pytest.mark.parametrize("repair", ["fast", "sequential", "none"])
def test_outputs_when_probes_are_asked_in_order_then_equal_those_measured_alone(repair: Repair) -> None:
    shared = trunk(repair)
    for probe in listed()[:: 1 if repair == "fast" else 7]:
        assert torch.equal(torch.cat(shared.outputs(probe.assignment)), wanted(probe.assignment, repair)), probe.key


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(0, 40, 4)))
def test_outputs_when_the_order_changes_then_they_do_not(order: list[int]) -> None:
    shared = trunk()
    for index in order:
        assignment = listed()[index].assignment
        assert torch.equal(torch.cat(shared.outputs(assignment)), wanted(assignment))


def test_outputs_when_several_choices_change_then_equal_those_measured_alone() -> None:
    later = [probe for probe in listed() if trunk().first_change(probe.assignment) not in (None, 1)]
    two = [later[3].assignment, later[-1].assignment]
    mixed = Assignment(
        {name: min(item.keep[name] for item in two) for name in base().keep},
        {name: min(item.weight_bits[name] for item in two) for name in base().weight_bits},
        {name: min(item.activation_bits[name] for item in two) for name in base().activation_bits},
    )
    shared = trunk()
    assert torch.equal(torch.cat(shared.outputs(mixed)), wanted(mixed))
    assert torch.equal(torch.cat(shared.outputs(two[1])), wanted(two[1]))


def test_first_change_when_nothing_differs_then_none_and_else_the_first_node_concerned() -> None:
    shared, steps = trunk(), {node.name: step for step, node in enumerate(trained().folded.graph.nodes)}
    heads = {site.id: site.head for site in quantizer_sites(trained().folded).sites}
    assert heads["relu"] == "stem"  # a fused chain is quantized where it begins
    assert shared.first_change(base()) is None
    for probe in listed()[1:]:
        if probe.kind == "keep":
            group = next(group for group in trained().graph.groups if group.id == probe.name)
            assert shared.first_change(probe.assignment) == min(steps[name] for name in group.producers)
        else:
            assert shared.first_change(probe.assignment) == steps[heads.get(probe.name, probe.name)]


def test_step_when_probes_are_listed_then_the_trunk_only_ever_moves_forward() -> None:
    shared, seen = trunk(), []
    for probe in listed():
        shared.outputs(probe.assignment)
        seen.append(shared.step)
    assert seen == sorted(seen)
    assert seen[-1] > len(trained().folded.graph.nodes) // 2


def test_outputs_when_growing_fails_then_the_next_probe_starts_anew() -> None:
    shared, last = trunk(), listed()[-1].assignment
    broken = Trunk(alone().compressor, base(), "fast", [(torch.zeros(4, 3, 8, 8),)])
    with pytest.raises(RuntimeError):
        broken.outputs(last)
    assert broken.step == 0
    broken._batches = shared._batches
    broken._plant()
    assert torch.equal(torch.cat(broken.outputs(last)), wanted(last))


def test_evaluate_when_a_base_is_named_then_the_metrics_are_the_same() -> None:
    own = fresh()
    for probe in listed()[::5]:
        shared = own.evaluate(probe.assignment, "screen", "fast", base()).metrics
        assert shared == alone().evaluate(probe.assignment, "screen", "fast").metrics, probe.key
    assert own._trunk is not None
    assert own._trunk[1].step > 0


def test_walk_when_stopped_anywhere_and_forked_then_ends_as_a_run_does() -> None:
    module, x = trained().folded, data()["evaluation"].inputs[0][:8]
    whole, walk = run(module, x), Walk((x,))
    for step in range(len(module.graph.nodes)):
        walk.advance(module, step)
        fork = walk.fork()
        fork.advance(module)
        assert torch.equal(fork.outputs(module), whole)
    assert walk.step == len(module.graph.nodes) - 1
    assert torch.equal(walk.outputs(module), whole)


def test_live_bytes_when_two_values_wait_then_both_count() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    left = graph.call_function(torch.relu, (x,))
    right = graph.call_function(torch.tanh, (x,))
    graph.output(graph.call_function(torch.add, (left, right)))
    module = torch.fx.GraphModule({}, graph)
    shapes = {node.name: (1, 10) for node in module.graph.nodes if node.op != "output"}
    assert live_bytes(module, shapes) == 4 * 10 * 3
