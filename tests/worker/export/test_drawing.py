"""The pictures of a report, by numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.export import drawing
from worker.export.drawing import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale, fronts, heat, stack, strips

from .documents import FRONT, PARTS, layer, point

COSTS = st.floats(1e-3, 1e15)


def test_scale_when_logarithmic_then_equal_factors_take_equal_room() -> None:
    scale = Scale(10.0, 1000.0, 0.0, 100.0, is_log=True)
    assert [scale.at(value) for value in (10.0, 100.0, 1000.0)] == [0.0, 50.0, 100.0]
    assert scale.ticks() == [10, 20, 50, 100, 200, 500, 1000]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.93, 0.99, [0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99])],
)
def test_scale_when_even_then_round_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert Scale(low, high, 0.0, 1.0).ticks() == pytest.approx(ticks)


@given(st.lists(st.tuples(COSTS, st.floats(0.0, 1.0), st.booleans()), min_size=1, max_size=40))
def test_fronts_when_drawn_then_every_point_lies_inside_the_frame(rows: list[tuple[float, float, bool]]) -> None:
    points = [point(idx, "sampled", inside, quality, cost) for idx, (cost, quality, inside) in enumerate(rows)]
    for drawn in fronts({**FRONT, "points": points}, 0):
        for item in drawn.dots:
            assert LEFT <= item.x <= WIDTH - RIGHT
            assert TOP <= item.y <= HEIGHT - BOTTOM
        assert all(LEFT <= tick.at <= WIDTH - RIGHT for tick in drawn.xs)
        assert drawn.chosen in drawn.dots
        assert bool(drawn.path) == any(inside for _, _, inside in rows)


def test_fronts_when_points_are_given_then_marked_limited_and_joined_as_a_staircase() -> None:
    bops, weights = fronts(FRONT, 2)
    assert (bops.axis, weights.axis, weights.limit) == ("bops", "weight_bytes", None)
    assert bops.limit is not None and bops.chosen is not None
    assert bops.chosen.x < bops.limit
    assert [item.look for item in bops.dots] == ["over", "inside", "inside", "inside", "baseline"]
    first = next(item for item in bops.dots if "trial 1 " in item.text)
    assert bops.path == f"M{first.x} {first.y}H{bops.chosen.x}V{bops.chosen.y}"
    assert "2 of them are the front" in bops.described


def test_fronts_when_lower_is_better_then_the_better_lies_higher() -> None:
    points = [point(1, "seed", True, 0.5, 1e6), point(2, "seed", True, 0.1, 2e6)]
    drawn = fronts({**FRONT, "metric": "kl", "points": points}, 2)[0]
    worse, better = drawn.dots
    assert better.y < worse.y
    assert drawn.path.startswith(f"M{worse.x} {worse.y}H{better.x}")
    assert fronts({**FRONT, "points": []}, 2) == []


def test_strips_when_layers_differ_then_heights_are_shares_of_channels_and_bits() -> None:
    found = strips([layer("stem", 12, 16, (4, 8)), layer("head", 10, 10, (8, 32))])
    stem, head = found.bars
    assert (found.most_bits, stem.kept, head.kept) == (32, 0.75 * drawing.STRIP, drawing.STRIP)
    assert (stem.weight, head.read) == (round(drawing.STRIP / 8, 1), drawing.STRIP)
    assert head.x + head.width <= found.width
    many = strips([layer(f"l{n}", 4, 8, (8, 8)) for n in range(200)])
    assert sum(bar.named for bar in many.bars) <= drawing.NAMED_BARS
    assert many.bars[-1].x + many.bars[-1].width <= many.width


def test_stack_when_parts_are_given_then_pieces_lie_one_behind_the_other() -> None:
    pieces = stack(PARTS, 0.04, 300.0)
    assert [(item.part, item.x, item.width) for item in pieces] == [
        ("compute", 0.0, 225.0),
        ("memory", 225.0, 45.0),
        ("boundary", 270.0, 30.0),
    ]
    assert stack(PARTS, 0.0, 300.0) == []


def test_heat_when_a_curve_is_given_then_shades_go_by_the_root_and_the_choice_is_marked() -> None:
    levels = heat({"chosen": 4, "levels": [[8, 0.0], [4, 0.04], [2, 0.16]]}, 0.16)
    assert [(item.value, item.shade, item.chosen) for item in levels] == [
        (8, 0.0, False),
        (4, 0.5, True),
        (2, 1.0, False),
    ]
