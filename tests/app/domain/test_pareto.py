"""Pareto fronts and hypervolume."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.pareto import dominates, front, hypervolume, hypervolume_2d

points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)), max_size=25)
pairs = st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), max_size=12)


@given(points)
def test_front_when_drawn_then_nothing_in_it_is_beaten_and_all_else_is(cloud: list[tuple[int, int, int]]) -> None:
    kept = front(cloud)
    chosen = [cloud[index] for index in kept]
    assert chosen == sorted(chosen)
    assert len(set(chosen)) == len(chosen)
    assert not any(dominates(one, other) for one in chosen for other in chosen)
    for point in cloud:
        assert point in chosen or any(dominates(one, point) for one in chosen)


def test_dominates_when_equal_then_not() -> None:
    assert not dominates((1, 2), (1, 2))
    assert dominates((1, 2), (1, 3))
    assert not dominates((0, 4), (1, 3))


def test_front_when_points_are_equal_then_the_first_is_kept() -> None:
    assert front([(2, 2), (1, 3), (2, 2), (3, 3)]) == [1, 0]


def test_hypervolume_when_worked_by_hand_then_the_staircase_area() -> None:
    assert hypervolume_2d([(1, 3), (2, 1), (2.5, 2.5)], (4, 4)) == pytest.approx(2 * 3 + 1 * 1)
    assert hypervolume_2d([], (1, 1)) == 0
    assert hypervolume_2d([(2, 0)], (1, 1)) == 0


@given(pairs, st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_hypervolume_when_a_point_is_added_then_never_falls(
    cloud: list[tuple[float, float]], extra: tuple[float, float]
) -> None:
    reference = (1.0, 1.0)
    before, after = hypervolume_2d(cloud, reference), hypervolume_2d([*cloud, extra], reference)
    assert after >= before - 1e-9
    alone = (1 - extra[0]) * (1 - extra[1])
    assert alone - 1e-9 <= after <= 1 + 1e-9


@given(pairs)
def test_hypervolume_when_there_are_two_axes_then_is_the_area(cloud: list[tuple[float, float]]) -> None:
    assert hypervolume(cloud, (1.0, 1.5)) == pytest.approx(hypervolume_2d(cloud, (1.0, 1.5)))


def test_hypervolume_when_there_are_three_axes_then_the_union_of_the_boxes() -> None:
    assert hypervolume([(1, 1, 1)], (2, 3, 4)) == 1 * 2 * 3
    assert hypervolume([(0, 1, 1), (1, 0, 1)], (2, 2, 2)) == 2 + 2 - 1
    assert hypervolume([(0, 0, 1), (1, 1, 0), (1, 1, 1)], (2, 2, 2)) == 4 + 1 * 1 * 1
    assert hypervolume([(3, 0, 0)], (2, 2, 2)) == hypervolume([], (2, 2, 2)) == 0


@given(points)
def test_hypervolume_when_points_lie_on_a_grid_then_the_cells_that_one_of_them_dominates(
    cloud: list[tuple[int, int, int]],
) -> None:
    cells = sum(
        any(x <= a and y <= b and z <= c for x, y, z in cloud) for a in range(4) for b in range(4) for c in range(4)
    )
    assert hypervolume(cloud, (4, 4, 4)) == cells
