"""Chart figures as plain dicts for Plotly: pure functions of points and layers. Colours follow Okabe and Ito."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.domain.device import DeviceProfile, Throughput
from app.domain.metrics import HIGHER_IS_BETTER
from app.domain.pareto import front
from app.domain.words import SHARES, amount, figure, label, quality_label

Figure = dict[str, Any]

BLUE, VERMILION, GREEN, ORANGE = "#1F83C9", "#D55E00", "#009E73", "#E69F00"
BITS_COLOURS = {2: "#440154", 3: "#443983", 4: "#31688E", 5: "#21918C", 6: "#35B779", 7: "#7AD151", 8: "#5EC962"}
WIDE_COLOUR = "#B8BDC6"
PART_COLOURS = {
    "compute": BLUE,
    "memory": GREEN,
    "padding": ORANGE,
    "boundary": VERMILION,
    "overhead": "#B8BDC6",
    "fallback": "#CC79A7",
}
AXES = ("latency_ms", "weight_bytes", "bops")


@dataclass(frozen=True)
class Point:
    """One measured assignment: number, costs, quality by a metric (None: not measured) and the page it leads to."""

    idx: int
    costs: Mapping[str, float]
    quality: float | None
    feasible: bool
    kind: str = "sampled"
    href: str | None = None
    chosen: bool = False
    metric: str = "accuracy"


@dataclass(frozen=True)
class Bar:
    """One layer of a candidate: kept and full output channels, weight bits, bits of its input."""

    name: str
    kept: int
    channels: int
    weight_bits: int
    input_bits: int


def pareto(points: Sequence[Point], axis: str, limit: float | None, quality: str = "accuracy") -> Figure:
    """Return the scatter of cost (one of AXES) against quality: feasible filled, infeasible hollow, baseline a diamond,
    the front of the feasible points joined, the budget a line with its broken side shaded."""
    shown = [point for point in points if point.quality is not None and axis in point.costs]
    inside = [point for point in shown if point.feasible and point.kind != "baseline"]
    outside = [point for point in shown if not point.feasible and point.kind != "baseline"]
    baseline = [point for point in shown if point.kind == "baseline"]
    traces = [
        _dots("over budget", outside, axis, {"symbol": "circle-open", "color": VERMILION, "size": 8}),
        _dots("inside budget", inside, axis, {"symbol": "circle", "color": BLUE, "size": 8}),
        _front(inside, axis, sign_of(quality)),
        _dots("baseline", baseline, axis, {"symbol": "diamond", "color": ORANGE, "size": 12}),
        _dots(
            "chosen",
            [point for point in shown if point.chosen],
            axis,
            {"symbol": "circle-open", "color": GREEN, "size": 17, "line": {"width": 2.5}},
        ),
    ]
    xaxis = {
        "title": {"text": axis_title(axis)},
        "type": "log",
        "exponentformat": "SI",
    }
    layout = _layout(xaxis, quality_axis(quality))
    right = max((point.costs[axis] for point in shown), default=0.0)
    return {"data": [trace for trace in traces if trace["x"]], "layout": {**layout, **_budget(limit, axis, right)}}


def history(points: Sequence[Point], quality: str = "accuracy") -> Figure:
    """Return quality over trial number with the best feasible value so far as a staircase."""
    shown = [point for point in points if point.quality is not None and point.kind != "baseline"]
    inside = [point for point in shown if point.feasible]
    best, sign = list[float](), sign_of(quality)
    for point in inside:
        assert point.quality is not None
        best.append(max((point.quality, *best[-1:]), key=lambda value: sign * value))
    outside = [point for point in shown if not point.feasible]
    dots = [
        _dots("over budget", outside, None, {"symbol": "circle-open", "color": VERMILION, "size": 6}),
        _dots("inside budget", inside, None, {"symbol": "circle", "color": BLUE, "size": 6}),
    ]
    stairs = {
        "type": "scatter",
        "mode": "lines",
        "name": "best inside budget",
        "line": {"shape": "hv", "color": GREEN, "width": 2},
        "x": [point.idx for point in inside],
        "y": best,
        "hoverinfo": "skip",
    }
    layout = _layout({"title": {"text": "trial"}}, quality_axis(quality))
    return {"data": [trace for trace in (*dots, stairs) if trace["x"]], "layout": layout}


def layers(bars: Sequence[Bar]) -> Figure:
    """Return the per-layer picture of a candidate: kept channels over full width, and bits of weights and inputs, in
    the order of the network."""
    names = [bar.name for bar in bars]
    kept = {
        "type": "bar",
        "name": "kept channels",
        "x": names,
        "y": [bar.kept for bar in bars],
        "marker": {"color": BLUE},
        "customdata": [[bar.channels, bar.kept / bar.channels] for bar in bars],
        "hovertemplate": "%{x}: %{y} of %{customdata[0]} channels (%{customdata[1]:.0%})<extra></extra>",
    }
    removed = {
        "type": "bar",
        "name": "removed",
        "x": names,
        "base": [bar.kept for bar in bars],
        "y": [bar.channels - bar.kept for bar in bars],
        "marker": {"color": "rgba(138,143,152,0.28)"},
        "hoverinfo": "skip",
    }
    traces = [kept, removed, _bits("weight bits", bars, "weight_bits"), _bits("input bits", bars, "input_bits")]
    top = max((max(bar.weight_bits, bar.input_bits) for bar in bars), default=8)
    layout = _layout({"type": "category", "tickangle": -40, "anchor": "y2"}, {"title": {"text": "channels"}})
    layout["yaxis"]["domain"] = [0.56, 1.0]
    layout["yaxis2"] = {"domain": [0.0, 0.46], "title": {"text": "bits"}, "range": [0, top * 1.18], "dtick": 2}
    layout["barmode"], layout["bargap"] = "overlay", 0.3
    return {"data": traces, "layout": layout}


def times(why: Mapping[str, Any]) -> Figure:
    """Return milliseconds per operation, stacked by cause, in the order of the answer; parts that are nowhere are left
    out."""
    rows = [*why.get("operations", ())]
    if rows and sum(why["network"].values()) > 0:
        rows.append({"name": "whole network", "parts": why["network"]})
    traces = [
        {
            "type": "bar",
            "name": part,
            "x": [row["name"] for row in rows],
            "y": [row["parts"][part] for row in rows],
            "marker": {"color": colour},
            "hovertemplate": f"%{{x}}: %{{y:.4g}} ms {part}<extra></extra>",
        }
        for part, colour in PART_COLOURS.items()
        if any(row["parts"][part] for row in rows)
    ]
    axis = {"type": "category", "tickangle": -40}
    return {"data": traces, "layout": {**_layout(axis, {"title": {"text": "ms, modelled"}}), "barmode": "stack"}}


def roofline(device: DeviceProfile) -> Figure:
    """Return attainable giga-MACs per second of dense convolutions over arithmetic intensity (MACs per byte moved): one
    roof per compute entry at the activation memory's bandwidth, and the slope of weights that come from their store."""
    served: dict[str, list[str]] = {}
    for weight_bits, activation_bits in sorted({pair for pairs in device.pairs.values() for pair in pairs}):
        entry = device.throughput(weight_bits, activation_bits)
        served.setdefault(_pair(entry), []).append(f"w{weight_bits}a{activation_bits}")
    top = max(entry.rate("conv") for entry in device.compute) / 1e9
    slowest = min(device.activation_pool.gbps, device.weight_store.gbps)
    xs = _spread(0.01, 10.0 * top / slowest)
    traces = [_roof(entry, device, xs, served.get(_pair(entry), [])) for entry in device.compute]
    slope = [x * device.weight_store.gbps for x in xs]
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "weights from the store",
            "x": [x for x, y in zip(xs, slope, strict=True) if y <= top],
            "y": [y for y in slope if y <= top],
            "line": {"color": VERMILION, "dash": "dash", "width": 1.5},
            "hovertemplate": "%{x:.3g} MACs per byte: %{y:.3g} GMAC/s<extra>weights from the store</extra>",
        }
    )
    xaxis = {"title": {"text": "MACs per byte"}, "type": "log", "exponentformat": "SI"}
    return {
        "data": traces,
        "layout": _layout(xaxis, {"title": {"text": "GMAC/s"}, "type": "log", "exponentformat": "SI"}),
    }


def drift(pairs: Sequence[tuple[float, float]], interval: float) -> Figure:
    """Return measured over predicted milliseconds, the line where both are equal, and the interval around it."""
    ends = [min(min(pair) for pair in pairs), max(max(pair) for pair in pairs)] if pairs else []
    lines = (
        ("as predicted", 1.0, "solid"),
        ("interval", 1 + interval, "dot"),
        ("below", max(1 - interval, 0.01), "dot"),
    )
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": ends,
            "y": [x * factor for x in ends],
            "line": {"color": GREEN if factor == 1 else WIDE_COLOUR, "width": 1.5, "dash": dash},
            "showlegend": name != "below",
            "hoverinfo": "skip",
        }
        for name, factor, dash in lines
    ]
    dots = {
        "type": "scatter",
        "mode": "markers",
        "name": "timed files",
        "x": [predicted for predicted, _ in pairs],
        "y": [measured for _, measured in pairs],
        "marker": {"color": BLUE, "size": 8},
        "hovertemplate": "predicted %{x:.3g} ms, measured %{y:.3g} ms<extra></extra>",
    }
    axis = {"type": "log", "exponentformat": "SI"}
    xaxis, yaxis = ({"title": {"text": f"{name} (ms)"}, **axis} for name in ("Predicted", "Measured"))
    return {"data": [*traces, dots], "layout": _layout(xaxis, yaxis)}


def _roof(entry: Throughput, device: DeviceProfile, xs: Sequence[float], served: Sequence[str]) -> Figure:
    peak = entry.rate("conv") / 1e9
    dash = "dot" if not served else "longdash" if entry.activation_bits > 8 else "solid"
    note = f"computes {', '.join(served)}" if served else "no legal pair of its own"
    return {
        "type": "scatter",
        "mode": "lines",
        "name": _pair(entry),
        "x": list(xs),
        "y": [min(peak, x * device.activation_pool.gbps) for x in xs],
        "line": {"color": bits_colour(entry.weight_bits), "width": 2, "dash": dash},
        "hovertemplate": f"%{{x:.3g}} MACs per byte: %{{y:.3g}} GMAC/s<extra>{note}</extra>",
    }


def _pair(entry: Throughput) -> str:
    return f"w{entry.weight_bits}a{entry.activation_bits}"


def _spread(low: float, high: float, steps: int = 121) -> list[float]:
    """Return `steps` numbers from `low` to `high`, each by the same factor larger."""
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]


def axis_title(metric: str) -> str:
    """Return the title of a cost axis with its unit."""
    units = {"latency_ms": " (ms, modelled)", "weight_bytes": " (bytes)", "peak_activation_bytes": " (bytes)"}
    name = "Weights" if metric == "weight_bytes" else label(metric)
    return name + units.get(metric, "")


def sign_of(quality: str) -> float:
    """Return 1 for a metric where higher is better, else -1."""
    return 1.0 if quality in HIGHER_IS_BETTER else -1.0


def quality_axis(quality: str) -> Figure:
    """Return the axis of a quality metric: what is better lies higher."""
    axis = {"title": {"text": quality_label(quality)}, "tickformat": ".1%" if quality in SHARES else ""}
    return axis if quality in HIGHER_IS_BETTER else {**axis, "autorange": "reversed"}


def bits_colour(bits: int) -> str:
    """Return the colour that stands for a bit-width."""
    return BITS_COLOURS.get(bits, WIDE_COLOUR)


def _dots(name: str, points: Sequence[Point], axis: str | None, marker: Mapping[str, Any]) -> Figure:
    """Return points over a cost, or over the trial number where no axis is named."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [point.idx if axis is None else point.costs[axis] for point in points],
        "y": [point.quality for point in points],
        "text": [_tip(point) for point in points],
        "customdata": [point.href for point in points],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": dict(marker),
    }


def _tip(point: Point) -> str:
    costs = "<br>".join(f"{label(name)}: {amount(name, point.costs[name])}" for name in AXES if name in point.costs)
    head = "baseline" if point.kind == "baseline" else f"trial {point.idx} ({point.kind})"
    return f"<b>{head}</b><br>{quality_label(point.metric)}: {figure(point.metric, point.quality)}<br>{costs}"


def _front(points: Sequence[Point], axis: str, sign: float) -> Figure:
    order = front([(point.costs[axis], -sign * (point.quality or 0.0)) for point in points])
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "front",
        "x": [points[index].costs[axis] for index in order],
        "y": [points[index].quality for index in order],
        "line": {"color": BLUE, "width": 1.5, "shape": "hv"},
        "hoverinfo": "skip",
    }


def _bits(name: str, bars: Sequence[Bar], field: str) -> Figure:
    values = [getattr(bar, field) for bar in bars]
    first = field == "weight_bits"
    return {
        "type": "bar",
        "name": name,
        "showlegend": False,
        "x": [bar.name for bar in bars],
        "y": values,
        "yaxis": "y2",
        "width": 0.3,
        "offset": -0.33 if first else 0.03,
        "text": [f"{'w' if first else 'a'}{value}" for value in values],
        "textposition": "outside",
        "textangle": 0,
        "marker": {"color": [bits_colour(value) for value in values]},
        "hovertemplate": f"%{{x}}: %{{y}} {name}<extra></extra>",
    }


def _budget(limit: float | None, axis: str, right: float) -> Figure:
    if limit is None:
        return {}
    far = max(right, limit) * 4.0
    shade = {
        "type": "rect",
        "yref": "paper",
        "x0": limit,
        "x1": far,
        "y0": 0,
        "y1": 1,
        "line": {"width": 0},
        "fillcolor": "rgba(213,94,0,0.07)",
        "layer": "below",
    }
    line = {
        "type": "line",
        "yref": "paper",
        "x0": limit,
        "x1": limit,
        "y0": 0,
        "y1": 1,
        "line": {"color": VERMILION, "width": 1.5, "dash": "dash"},
    }
    return {"shapes": [shade, line]}


def _layout(xaxis: Figure, yaxis: Figure) -> Figure:
    return {
        "xaxis": {"zeroline": False, **xaxis},
        "yaxis": {"zeroline": False, **yaxis},
        "margin": {"l": 60, "r": 16, "t": 36, "b": 56},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
    }
