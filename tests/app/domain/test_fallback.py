"""Which operations' times are guesses: those a host runs, and those whose kernels nobody measured."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from app.domain.cost import breakdown
from app.domain.device import Fallback
from app.domain.fallback import fallen_back
from app.domain.kernels import kernels
from app.domain.latency import LatencyTable, variants
from app.domain.space import widest
from tests.app.domain.drawings import profile, two_convs
from tests.app.domain.random_graphs import BUILT_IN, built_in
from tests.worker.search.pictures import resnet


def test_fallen_back_when_the_profile_names_no_operation_then_none() -> None:
    assert fallen_back(two_convs(), profile()) == ()


def test_fallen_back_when_a_host_runs_a_kind_then_each_of_that_kind_in_execution_order() -> None:
    graph = resnet()
    device = replace(profile(), fallback=Fallback(frozenset({"add", "linear"}), 0.5, 30.0))
    named = fallen_back(graph, device)
    assert set(named) == {item.name for item in graph.ops if item.kind in ("add", "linear")} != set()
    order = {item.name: item.step for item in graph.ops}
    assert list(named) == sorted(named, key=order.__getitem__)
    spent = breakdown(graph, widest(graph, 8), device)
    assert {op.name for op in spent.ops if op.parts.fallback > 0} == set(named)


def test_fallen_back_when_the_table_lacks_a_class_then_the_operations_that_need_it() -> None:
    graph = resnet()
    eight, floats = widest(graph, 8), widest(graph, 32)
    known = {key: {"call": 1e-3} for work in kernels(graph, eight) for key, _, _ in variants(work)}
    device = replace(profile(), table=LatencyTable(known, saturating=True))
    assert fallen_back(graph, device) == ()
    assert set(fallen_back(graph, device, floats)) >= {layer.name for layer in graph.layers}
    linear = {key: row for key, row in known.items() if not key.startswith("linear")}
    last = [layer.name for layer in graph.layers if layer.kind == "linear"]
    assert list(fallen_back(graph, replace(device, table=LatencyTable(linear, saturating=True)))) == last


@given(st.sampled_from(BUILT_IN))
def test_fallen_back_when_a_built_in_profile_then_what_the_cost_model_charges_to_the_host(name: str) -> None:
    graph, device = resnet(), built_in(name)
    spent = breakdown(graph, widest(graph, 8), device)
    assert {op.name for op in spent.ops if op.parts.fallback > 0} == set(fallen_back(graph, device))
