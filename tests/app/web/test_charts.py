"""Figures are plain data: what is drawn is asserted on dicts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from app.web.charts import BITS_COLOURS, Bar, Point, bits_colour, drift, history, layers, pareto, roofline
from tests.app.domain.drawings import profile


def costs(bops: float) -> dict[str, float]:
    return {"bops": bops, "weight_bytes": bops / 10, "latency_ms": bops / 1e6}


POINTS = [
    Point(0, costs(64e6), 0.90, False, "baseline"),
    Point(1, costs(3e6), 0.70, True),
    Point(2, costs(2e6), 0.75, True, href="/candidates/cnd_2", chosen=True),
    Point(3, costs(4e6), 0.80, True),
    Point(4, costs(9e6), 0.88, False),
    Point(5, costs(1e6), None, True),
]


def traces(figure: dict[str, object]) -> dict[str, dict[str, list[object]]]:
    return {trace["name"]: trace for trace in figure["data"]}  # type: ignore[attr-defined]


def test_pareto_when_drawn_then_separates_feasible_infeasible_baseline_and_chosen() -> None:
    drawn = traces(pareto(POINTS, "bops", 5e6))
    assert drawn["inside budget"]["x"] == [3e6, 2e6, 4e6]
    assert drawn["over budget"]["y"] == [0.88]
    assert drawn["baseline"]["x"] == [64e6]
    assert drawn["chosen"]["x"] == [2e6]
    assert drawn["inside budget"]["customdata"] == [None, "/candidates/cnd_2", None]


def test_pareto_when_a_point_is_dominated_then_the_front_passes_it_by() -> None:
    front = traces(pareto(POINTS, "bops", 5e6))["front"]
    assert (front["x"], front["y"]) == ([2e6, 4e6], [0.75, 0.80])


def test_pareto_when_axis_is_switched_then_x_follows_and_stays_logarithmic() -> None:
    latency = pareto(POINTS, "latency_ms", 5.0)
    assert traces(latency)["inside budget"]["x"] == [3.0, 2.0, 4.0]
    assert latency["layout"]["xaxis"]["type"] == "log"
    assert latency["layout"]["xaxis"]["title"]["text"] == "Latency (ms, modelled)"


def test_pareto_when_budget_is_known_then_the_broken_side_is_shaded() -> None:
    shade, line = pareto(POINTS, "bops", 5e6)["layout"]["shapes"]
    assert (shade["x0"], line["x0"], line["x1"]) == (5e6, 5e6, 5e6)
    assert shade["x1"] > 64e6
    assert "shapes" not in pareto(POINTS, "bops", None)["layout"]


def test_pareto_when_nothing_is_measured_then_has_no_traces() -> None:
    assert pareto([], "bops", 1.0)["data"] == []


def test_history_when_drawn_then_the_best_inside_the_budget_never_falls() -> None:
    drawn = traces(history(POINTS))
    assert drawn["best inside budget"]["x"] == [1, 2, 3]
    assert drawn["best inside budget"]["y"] == [0.70, 0.75, 0.80]
    assert drawn["over budget"]["x"] == [4]


def test_charts_when_lower_is_better_then_the_front_and_the_stairs_go_down_and_the_axis_is_turned() -> None:
    points = [
        replace(point, metric="kl", quality=None if point.quality is None else 1 - point.quality) for point in POINTS
    ]
    figure, stairs = pareto(points, "bops", 5e6, "kl"), traces(history(points, "kl"))["best inside budget"]
    assert traces(figure)["front"]["y"] == pytest.approx([0.25, 0.2])
    assert stairs["y"] == pytest.approx([0.3, 0.25, 0.2])
    assert figure["layout"]["yaxis"]["autorange"] == "reversed"
    assert (figure["layout"]["yaxis"]["title"], figure["layout"]["yaxis"]["tickformat"]) == ({"text": "KL"}, "")
    assert "KL: 0.2500" in str(traces(figure)["inside budget"]["text"][1])
    assert "autorange" not in pareto(POINTS, "bops", 5e6)["layout"]["yaxis"]


def test_layers_when_drawn_then_kept_and_removed_add_up_to_the_width() -> None:
    figure = layers([Bar("stem", 12, 16, 8, 8), Bar("head", 10, 10, 2, 4)])
    drawn = traces(figure)
    assert drawn["kept channels"]["y"] == [12, 10]
    assert drawn["removed"]["y"] == [4, 0]
    assert drawn["removed"]["base"] == [12, 10]
    assert drawn["weight bits"]["y"] == [8, 2]
    assert drawn["input bits"]["text"] == ["a8", "a4"]


def test_roofline_when_drawn_then_rises_with_bandwidth_up_to_the_attained_peak() -> None:
    figure = roofline(profile())  # 1 GB/s for activations, 0.5 for weights, half of 1 and 2 GMAC/s attained
    drawn = traces(figure)
    assert list(drawn) == ["w8a8", "w4a8", "weights from the store"]
    for name, peak in (("w8a8", 0.5), ("w4a8", 1.0)):
        points = zip(drawn[name]["x"], drawn[name]["y"], strict=True)
        assert [y for _, y in points] == [min(peak, x) for x in drawn[name]["x"]]  # type: ignore[type-var]
        assert max(drawn[name]["y"]) == peak  # type: ignore[type-var]
    assert drawn["weights from the store"]["y"] == [0.5 * x for x in drawn["weights from the store"]["x"]]  # type: ignore[operator]
    assert "computes w2a4, w2a8, w4a4, w4a8" in str(drawn["w4a8"]["hovertemplate"])
    assert json.loads(json.dumps(figure)) == figure


def test_drift_when_drawn_then_every_file_beside_the_line_of_equality_and_its_interval() -> None:
    figure = drift([(1.0, 1.5), (2.0, 3.0)], 0.25)
    drawn = traces(figure)
    assert (drawn["timed files"]["x"], drawn["timed files"]["y"]) == ([1.0, 2.0], [1.5, 3.0])
    assert (drawn["as predicted"]["x"], drawn["as predicted"]["y"]) == ([1.0, 3.0], [1.0, 3.0])
    assert (drawn["interval"]["y"], drawn["below"]["y"]) == ([1.25, 3.75], [0.75, 2.25])
    assert json.loads(json.dumps(figure)) == figure
    assert traces(drift([], 0.5))["timed files"]["x"] == []


def test_bits_colours_when_compared_then_each_width_has_its_own() -> None:
    assert len({bits_colour(bits) for bits in BITS_COLOURS}) == 7
    assert bits_colour(32) == bits_colour(16)


def test_figures_when_serialised_then_are_plain_json() -> None:
    for figure in (pareto(POINTS, "bops", 5e6), history(POINTS), layers([Bar("a", 1, 2, 4, 4)])):
        assert json.loads(json.dumps(figure)) == figure
