"""The pictures of a report as geometry: scales, ticks, dots and bars, in the units of the SVG written from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.domain.metrics import HIGHER_IS_BETTER
from app.domain.pareto import front
from app.domain.roofline import PARTS
from app.domain.words import SHARES, amount, figure, quality_label

Json = Mapping[str, Any]

WIDTH, HEIGHT = 520.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 14.0, 14.0, 44.0
STRIP = 116.0
NAMED_BARS = 32


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` onto drawing units from `start` to `end`, evenly or by their logarithms."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], ends: tuple[float, float], is_log: bool = False) -> Scale:
        """Return a scale that shows all values with a little room around them; logarithmic only if all are positive."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        if is_log and low > 0:
            room = max(1.06, (high / low) ** 0.05)
            return cls(low / room, high * room, *ends, True)
        room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
        return cls(low - room, high + room, *ends)

    def at(self, value: float) -> float:
        """Return where a value lies, to a tenth of a unit."""
        low, high = (math.log(self.low), math.log(self.high)) if self.is_log else (self.low, self.high)
        share = ((math.log(value) if self.is_log else value) - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int = 6) -> list[float]:
        """Return round values inside the scale: 1, 2, 5 times powers of ten; fewer than `most` where it has room."""
        if not self.is_log or self.high / self.low < 4:
            return list(_even(self.low, self.high, most))
        found = [value for value in _decades(self.low, self.high, (1, 2, 5))]
        return found if len(found) <= most + 1 else list(_decades(self.low, self.high, (1,)))


def _even(low: float, high: float, most: int) -> Iterator[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    for count in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield count * step


def _decades(low: float, high: float, factors: Iterable[int]) -> Iterator[float]:
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        yield from (value for factor in factors if low <= (value := factor * 10.0**power) <= high)


@dataclass(frozen=True)
class Tick:
    """A place on an axis and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """One measured trial: its place, how it is drawn (over, inside, baseline) and what it says."""

    x: float
    y: float
    look: str
    text: str


@dataclass(frozen=True)
class Front:
    """The search over one cost: `path` joins the front, `limit` is where the budget ends, `chosen` the candidate.

    `described` says in words what the picture shows.
    """

    axis: str
    metric: str
    xs: tuple[Tick, ...]
    ys: tuple[Tick, ...]
    dots: tuple[Dot, ...]
    path: str
    limit: float | None
    chosen: Dot | None
    described: str


def fronts(drawn: Json, trial: int) -> list[Front]:
    """Return a picture for each cost of a search's front (`worker.telling.front_of`); `trial` is the candidate's."""
    return [_front(drawn, axis, trial) for axis in drawn["axes"] if drawn["points"]]


def _front(drawn: Json, axis: str, trial: int) -> Front:
    points, metric = drawn["points"], drawn["metric"]
    limit = drawn["limits"].get(axis)
    costs = [float(item["costs"][axis]) for item in points]
    x = Scale.over([*costs, *([] if limit is None else [limit])], (LEFT, WIDTH - RIGHT), is_log=True)
    ends = (HEIGHT - BOTTOM, TOP) if metric in HIGHER_IS_BETTER else (TOP, HEIGHT - BOTTOM)
    y = Scale.over([float(item["quality"]) for item in points], ends)
    dots = {item["trial"]: _dot(item, axis, metric, (x, y)) for item in points}
    best = _on_front(points, axis, metric)
    return Front(
        axis,
        metric,
        tuple(Tick(x.at(value), amount(axis, value)) for value in x.ticks()),
        tuple(Tick(y.at(value), _tick(metric, value)) for value in y.ticks()),
        tuple(dots[item["trial"]] for item in sorted(points, key=_layer_of)),
        _stairs([dots[item["trial"]] for item in best]),
        None if limit is None else x.at(limit),
        dots.get(trial),
        f"{len(points)} measured trials, {quality_label(metric)} over {amount(axis, min(costs))} to "
        f"{amount(axis, max(costs))}; {len(best)} of them are the front inside the budget",
    )


def _layer_of(item: Json) -> tuple[int, int]:
    """Order points as they are painted: what breaks the budget below, the baseline on top."""
    return {"over": 0, "inside": 1, "baseline": 2}[_look(item)], item["trial"]


def _look(item: Json) -> str:
    if item["kind"] == "baseline":
        return "baseline"
    return "inside" if item["feasible"] else "over"


def _dot(item: Json, axis: str, metric: str, scales: tuple[Scale, Scale]) -> Dot:
    name = "float network" if item["kind"] == "baseline" else f"trial {item['trial']} ({item['kind']})"
    rank = f", candidate {item['rank']}" if item["rank"] else ""
    text = (
        f"{name}{rank}: {quality_label(metric)} {figure(metric, item['quality'])}, {amount(axis, item['costs'][axis])}"
    )
    return Dot(scales[0].at(float(item["costs"][axis])), scales[1].at(float(item["quality"])), _look(item), text)


def _on_front(points: Sequence[Json], axis: str, metric: str) -> list[Json]:
    inside = [item for item in points if _look(item) == "inside"]
    sign = -1.0 if metric in HIGHER_IS_BETTER else 1.0
    return [inside[index] for index in front([(item["costs"][axis], sign * item["quality"]) for item in inside])]


def _stairs(dots: Sequence[Dot]) -> str:
    """Return the path that joins points as a staircase: no quality is reached before the cost of its point."""
    if not dots:
        return ""
    return f"M{dots[0].x} {dots[0].y}" + "".join(f"H{dot.x}V{dot.y}" for dot in dots[1:])


def _tick(metric: str, value: float) -> str:
    return f"{100 * value:.4g} %" if metric in SHARES else f"{value:.4g}"


@dataclass(frozen=True)
class Bar:
    """One layer in the picture of all of them: heights of kept channels and of bits, upwards from their baselines."""

    x: float
    width: float
    number: int
    named: bool
    kept: float
    weight: float
    read: float
    weight_bits: int
    input_bits: int
    text: str


@dataclass(frozen=True)
class Strips:
    """All layers side by side: kept channels of the full width above, bits of weights and inputs below."""

    bars: tuple[Bar, ...]
    width: float
    strip: float
    most_bits: int


def strips(layers: Sequence[Json]) -> Strips:
    """Return the picture of a candidate's layers, numbered from 1 in the order of the network."""
    width = 1060.0
    slot = (width - LEFT) / max(1, len(layers))
    top = max([8, *(min(32, max(item["weight_bits"], item["input_bits"])) for item in layers)])
    every = -(-len(layers) // NAMED_BARS)
    bars = []
    for index, item in enumerate(layers):
        text = (
            f"{item['name']}: {item['out_channels']} of {item['full_out_channels']} channels, weights of "
            f"{item['weight_bits']} bits, input of {item['input_bits']} bits"
        )
        bars.append(
            Bar(
                x=round(LEFT + slot * (index + 0.14), 1),
                width=round(min(56.0, slot * 0.72), 1),
                number=index + 1,
                named=index % every == 0,
                kept=round(STRIP * item["keep_ratio"], 1),
                weight=round(STRIP * item["weight_bits"] / top, 1),
                read=round(STRIP * item["input_bits"] / top, 1),
                weight_bits=item["weight_bits"],
                input_bits=item["input_bits"],
                text=text,
            )
        )
    return Strips(tuple(bars), width, STRIP, top)


@dataclass(frozen=True)
class Piece:
    """A part of a stacked bar: start and length in drawing units, its cause, and what it says."""

    x: float
    width: float
    part: str
    text: str


def stack(parts: Mapping[str, float], longest: float, length: float) -> list[Piece]:
    """Return milliseconds by cause as pieces of one bar; `longest` milliseconds fill `length` units."""
    found, x = [], 0.0
    for part in PARTS:
        share = length * parts.get(part, 0.0) / longest if longest > 0 else 0.0
        if share > 0.05:
            found.append(Piece(round(x, 1), round(share, 1), part, f"{part} {amount('latency_ms', parts[part])}"))
            x += share
    return found


@dataclass(frozen=True)
class Level:
    """One level of a choice: what it adds to the loss, how dark it is drawn (0 to 1), and whether it was chosen."""

    value: int
    loss: float
    shade: float
    chosen: bool


def heat(curve: Json, worst: float) -> list[Level]:
    """Return the levels of a sensitivity curve; shades go by the root of the loss, `worst` being the darkest."""
    return [
        Level(value, loss, round(math.sqrt(max(0.0, loss) / worst), 3) if worst > 0 else 0.0, value == curve["chosen"])
        for value, loss in curve["levels"]
    ]
