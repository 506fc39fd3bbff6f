"""A latency table of one search's own: which versions are timed, and when their times make a table."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from app.domain.demand import float_only
from app.domain.kernels import kernels
from app.domain.latency import LAYERS, padded
from app.domain.space import Assignment, build_space, is_legal
from tests.app.domain.random_graphs import built_in
from tests.worker.search.pictures import resnet
from worker.own_table import FEWEST, MOST, affordable, fitted, near, versions

DEVICE = float_only(built_in("onnxruntime-cpu"))
GRAPH = resnet(blocks=3)
SPACE = build_space(GRAPH, DEVICE)


def true_ms(item: Assignment) -> float:
    """Return what versions take on a made-up device: 20 us, 1 us per call, and layers' products in blocks of 16."""
    works = kernels(GRAPH, item)
    layers = (work for work in works if work.op in LAYERS)
    products = sum(work.ins * work.kernel * work.positions * padded(work.outs, 16) for work in layers)
    return 0.02 + 1e-3 * len(works) + 2e-8 * products


def test_versions_when_drawn_then_different_legal_and_from_wide_to_narrow() -> None:
    drawn = versions(GRAPH, SPACE, MOST)
    assert len({item.digest for item in drawn}) == MOST
    assert all(is_legal(GRAPH, SPACE, item, DEVICE) for item in drawn)
    assert drawn == versions(GRAPH, SPACE, MOST)
    widths = sorted(sum(item.keep.values()) for item in drawn)
    assert widths[0] < 0.4 * widths[-1]


def test_versions_when_weights_depend_on_activations_then_every_pair_is_legal() -> None:
    device = replace(built_in("onnxruntime-cpu"), pairs={"default": ((8, 8), (4, 4))})
    space = build_space(GRAPH, device)
    drawn = versions(GRAPH, space, 12)
    assert len(drawn) > 0
    assert all(is_legal(GRAPH, space, item, device) for item in drawn)


def test_fitted_when_times_follow_blocks_of_channels_then_versions_not_timed_are_predicted() -> None:
    drawn = versions(GRAPH, SPACE, MOST + 40)
    table = fitted(GRAPH, [(item, true_ms(item)) for item in drawn[:MOST]])
    assert table is not None
    assert table.errors["all"] < 0.1
    errors = sorted(abs(table.network_ms(kernels(GRAPH, item)) / true_ms(item) - 1) for item in drawn[MOST:])
    assert errors[len(errors) // 2] < 0.03
    assert errors[9 * len(errors) // 10] < 0.1


def test_near_when_a_table_is_known_then_other_versions_about_the_limit() -> None:
    first = versions(GRAPH, SPACE, MOST)
    table = fitted(GRAPH, [(item, true_ms(item)) for item in first])
    assert table is not None
    limit = 1.2 * min(map(true_ms, first))
    found = near((GRAPH, SPACE, table), limit, MOST)
    assert len({item.digest for item in (*first, *found)}) == 2 * MOST
    assert sum(abs(true_ms(item) / limit - 1) < 0.2 for item in found) >= 0.8 * MOST


def test_fitted_when_times_follow_nothing_then_none() -> None:
    rng = random.Random(0)
    assert fitted(GRAPH, [(item, rng.uniform(0.1, 1.0)) for item in versions(GRAPH, SPACE, MOST)]) is None


def test_fitted_when_too_few_were_timed_then_none() -> None:
    assert fitted(GRAPH, [(item, true_ms(item)) for item in versions(GRAPH, SPACE, FEWEST - 1)]) is None


@pytest.mark.parametrize(("float_ms", "count"), [(0.2, MOST), (20.0, 12), (21.0, 0)])
def test_affordable_when_a_run_takes_long_then_fewer_versions_or_none(float_ms: float, count: int) -> None:
    assert affordable(float_ms) == count
