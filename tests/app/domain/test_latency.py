"""Latency tables: sums of features, monotone, equal for arrays and numbers, estimates where nothing was measured."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.latency import LAYERS, LatencyTable, Work, is_blocked, variants

OPS = (*LAYERS, "add", "quantize")
PRECISIONS = ("float", "int8", "uint8")


def full() -> LatencyTable:
    """A table with a coefficient of its own for every feature of every class."""
    classes: dict[str, dict[str, float]] = {}
    for op in OPS:
        for precision in PRECISIONS:
            for kernel in (1, 9):
                for key, _, features in variants(Work(op, precision, 16, 16, kernel, 64, 4)):
                    classes[key] = {name: 1e-6 * (1 + index) for index, name in enumerate(features)}
    return LatencyTable(classes, {"int8": 0.5, "overhead_ms": 0.25}, {"all": 0.1}, {"threads": 1})


works = st.builds(
    Work,
    op=st.sampled_from(OPS),
    precision=st.sampled_from(PRECISIONS),
    ins=st.integers(1, 200),
    outs=st.integers(1, 200),
    kernel=st.sampled_from((1, 9, 25)),
    positions=st.sampled_from((1, 49, 64, 1024)),
    stride=st.sampled_from((1, 4)),
)


@given(works, st.integers(0, 12), st.integers(0, 12))
def test_kernel_when_channels_grow_by_blocks_then_never_faster(work: Work, ins: int, outs: int) -> None:
    table = full()
    deeper = Work(**{**vars(work), "ins": work.ins + 16 * ins})
    wider = Work(**{**vars(work), "outs": work.outs + 16 * outs})
    for larger in (deeper, wider):
        if [weight for _, weight, _ in variants(larger)] == [weight for _, weight, _ in variants(work)]:
            assert table.kernel_ms(larger) >= table.kernel_ms(work)


@given(works, st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=6))
def test_kernel_when_channels_are_arrays_then_equal_to_one_by_one(work: Work, pairs: list[tuple[int, int]]) -> None:
    ins, outs = np.array(pairs, float).T
    found = full().kernel_ms(Work(**{**vars(work), "ins": ins, "outs": outs}))
    singly = [full().kernel_ms(Work(**{**vars(work), "ins": a, "outs": b})) for a, b in pairs]
    assert found + np.zeros(len(pairs)) == pytest.approx(singly, rel=1e-12)


def test_kernel_when_precision_has_a_slope_then_times_it() -> None:
    table = LatencyTable({"add.int8": {"calls": 2.0, "elements": 0.5, "reads": 0.25}}, {"int8": 0.5})
    assert table.kernel_ms(Work("add", "int8", 1, 8, kernel=2, positions=4)) == 0.5 * (2.0 + 0.5 * 32 + 0.25 * 64)


def test_kernel_when_pairs_do_not_saturate_then_full_eight_bits_are_like_fewer() -> None:
    table, work = full(), Work("conv", "uint8", 17, 16, 9, 64)
    assert table.kernel_ms(work) == table.kernel_ms(replace(work, precision="int8"))
    slow = replace(table, saturating=True)
    assert slow.kernel_ms(work) != table.kernel_ms(work)
    assert (table.missing([work]), table.covers(work)) == ((), True)


def test_table_when_stored_before_saturation_was_told_then_its_files_were_saturating() -> None:
    record = full().to_json()
    assert LatencyTable.from_json(record).saturating is False
    del record["saturating"]
    assert LatencyTable.from_json(record).saturating is True


def test_network_when_summed_then_overhead_and_kernels() -> None:
    table = LatencyTable({"add.float": {"calls": 2.0}}, {"overhead_ms": 0.25})
    assert table.network_ms([Work("add", "float", 1, 8)] * 3) == 6.25
    assert LatencyTable({}).overhead_ms == 0.0 and LatencyTable({}).error_p90 is None


@pytest.mark.parametrize(
    ("work", "blocked"),
    [
        (Work("conv", "int8", 16, 16, 9), True),
        (Work("conv", "int8", 17, 16, 9), False),
        (Work("conv", "int8", 16, 12, 9), False),
        (Work("conv", "float", 20, 7, 9), True),
        (Work("conv", "float", 18, 16, 9), False),
        (Work("depthwise", "int8", 1, 24, 9), False),
        (Work("depthwise", "float", 1, 24, 9), True),
    ],
)
def test_layer_when_channels_divide_then_on_the_fast_kernels(work: Work, blocked: bool) -> None:
    assert bool(is_blocked(work)) is blocked
    assert sum(weight for _, weight, _ in variants(work)) == 1.0


def test_table_when_a_class_was_not_measured_then_named_and_estimated_from_its_like() -> None:
    table = LatencyTable({"add.int8": {"elements": 2.0}, "mul.int8": {"elements": 3.0}, "linear.int8": {"macs": 9.0}})
    strange = Work("softmax", "int8", 1, 10)
    assert not table.covers(strange) and table.covers(Work("add", "int8", 1, 1))
    assert table.missing([strange, Work("add", "int8", 1, 1)]) == ("softmax.int8",)
    assert table.kernel_ms(strange) == (2.0 + 3.0) / 2 * 10


def test_kernel_when_activations_leave_the_cache_then_what_is_beyond_costs_extra() -> None:
    table = LatencyTable({"add.float": {"spilled": 1.0}, "add.int8": {"spilled": 1.0}})
    assert table.kernel_ms(Work("add", "float", 1, 64, positions=4096)) == 0.0
    assert table.kernel_ms(Work("add", "float", 1, 65, positions=4096)) == 4096 * 4
    assert table.kernel_ms(Work("add", "int8", 1, 65, positions=4096)) == 0.0


def test_table_when_stored_and_loaded_then_equal() -> None:
    assert LatencyTable.from_json(json.loads(json.dumps(full().to_json()))) == full()
    assert full().error_p90 == 0.1
