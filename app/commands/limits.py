"""Limits as people write them: `bops<=1/16`, `weight_bytes<=30kB`, `latency<=1/3 of float measured`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from app.domain.cost import METRICS
from app.domain.methods import METHODS, Training, is_trained
from app.domain.metrics import HIGHER_IS_BETTER
from app.domain.metrics import METRICS as QUALITIES

ALIASES = {
    "latency": "latency_ms",
    "size": "weight_bytes",
    "weights": "weight_bytes",
    "memory": "peak_activation_bytes",
    "peak_activation": "peak_activation_bytes",
    "energy": "energy_mj",
}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1024.0, "mib": 1024.0**2, "gib": 1024.0**3}
_COUNTS = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
UNITS: dict[str, dict[str, float]] = {
    "weight_bytes": _BYTES,
    "peak_activation_bytes": _BYTES,
    "latency_ms": {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3},
    "energy_mj": {"uj": 1e-3, "mj": 1.0, "j": 1e3},
    "macs": _COUNTS,
    "bops": _COUNTS,
}
_LIMIT = re.compile(
    r"\s*([a-z_]+)\s*(?:<=|=|≤)\s*(.+?)(?:\s+of\s+(w8a8|float))?(?:\s+(measured)(?:\s+(min|p50|p95))?)?\s*\Z"
)
_NUMBER = r"[0-9]+(?:[_0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+"
_RATIO = re.compile(rf"({_NUMBER})\s*/\s*({_NUMBER})\Z")
_SHARE = re.compile(rf"({_NUMBER})\s*([%x])\Z")
_WIDTH = re.compile(r"([wa])([0-9]{1,2})\Z")
_AMOUNT = re.compile(rf"({_NUMBER})\s*([A-Za-z]*)\Z")


def parse_limit(text: str) -> dict[str, Any]:
    """Return one limit of a request.

    A ratio (`1/16`), a share (`25%`) or a multiple (`0.5x`) is relative to the unpruned W8A8 network, or with
    `of float` to the float one; anything else is an amount with an optional unit. `measured` (or `measured p95`)
    demands that latency is measured on the device. Raises ValueError saying what is wrong.
    """
    match = _LIMIT.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a limit: write METRIC<=VALUE, like bops<=1/16 or weight_bytes<=30kB")
    metric = ALIASES.get(match[1], match[1])
    if metric not in METRICS:
        raise ValueError(f"{match[1]!r} is not a metric: use one of {', '.join(METRICS)}")
    evidence = {"evidence": match[4], **({"stat": match[5]} if match[5] else {})} if match[4] else {}
    if evidence and metric != "latency_ms":
        raise ValueError(f"{text!r}: only latency is measured on the device")
    relative = _relative(match[2])
    if relative is None:
        if match[3]:
            raise ValueError(f"{text!r}: 'of {match[3]}' needs a ratio, a share or a multiple")
        return {"metric": metric, "max": _positive(_amount(metric, match[2]), text), **evidence}
    base = {"relative_to": match[3]} if match[3] else {}
    return {"metric": metric, "relative": _positive(relative, text), **base, **evidence}


def parse_limits(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Return the limits of a request, in the order given."""
    return [parse_limit(text) for text in texts]


def parse_rules(texts: Iterable[str]) -> dict[str, str]:
    """Return what stands behind each pattern in 'PATTERN=RULE'. Raises ValueError for a text that is none."""
    found = {}
    for text in texts:
        pattern, sign, rule = (part.strip() for part in text.rpartition("="))
        if not (pattern and sign and rule):
            raise ValueError(f"{text!r} is no rule: write PATTERN=RULE, like 'stage1*=0.5' or 'head=w8,w4,a8'")
        found[pattern] = rule
    return found


def parse_ratios(texts: Iterable[str]) -> dict[str, float]:
    """Return keep ratios by pattern, from texts such as 'stage1*=0.5' or 'stage1*=1/2'."""
    found = {}
    for pattern, rule in parse_rules(texts).items():
        ratio = _relative(rule)
        try:
            found[pattern] = float(rule) if ratio is None else ratio
        except ValueError:
            raise ValueError(f"{rule!r} is no keep ratio") from None
    return found


def parse_bits(texts: Iterable[str]) -> dict[str, dict[str, list[int]]]:
    """Return legal widths by pattern, from texts such as 'head*=w8,w4,a8': of weights (w) and inputs (a)."""
    found: dict[str, dict[str, list[int]]] = {}
    for pattern, rule in parse_rules(texts).items():
        widths = [_WIDTH.match(part.strip()) for part in rule.split(",")]
        if not all(widths):
            raise ValueError(f"{rule!r} names no widths: write like w8,w4,a8")
        own: dict[str, list[int]] = {}
        for width in filter(None, widths):
            own.setdefault({"w": "weight", "a": "activation"}[width[1]], []).append(int(width[2]))
        found[pattern] = own
    return found


def parse_methods(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Return methods as a request names them, from texts such as 'relaxed-quantization:epochs=20,temperature=0.5'.

    Raises ValueError for a name or a parameter that there is not; values are checked by the service.
    """
    return [_method(*text.partition(":")[::2]) for text in texts]


def _method(name: str, rest: str) -> dict[str, Any]:
    if name not in METHODS:
        raise ValueError(f"{name!r} is no method; use one of {', '.join(METHODS)}")
    common = {item.name for item in fields(Training)} if is_trained(METHODS[name]) else set()
    own = {item.name for item in fields(METHODS[name])} - {"training"}
    found: dict[str, Any] = {"name": name, **({"training": {}} if common else {})}
    for key, equals, value in (part.strip().partition("=") for part in rest.split(",") if part.strip()):
        if not equals or key not in common | own:
            raise ValueError(f"{key!r} is no parameter of {name}; use one of {', '.join(sorted(common | own))}")
        place = found["training"] if key in common else found
        place[key] = _value(value)
    return found


def _value(text: str) -> Any:
    """Return a number or a truth value; what is neither stays a text, which the service refuses by name."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_figure(text: str) -> tuple[str, float]:
    """Return the metric and the value of a bound on a quality, such as 'accuracy>=0.9' or 'kl<=0.05'.

    Raises ValueError saying what is wrong.
    """
    metric, sign, value = (part.strip() for part in text.partition("<=" if "<=" in text else ">="))
    if metric not in QUALITIES:
        raise ValueError(f"{text!r}: {metric!r} is no quality metric; use one of {', '.join(QUALITIES)}")
    right = ">=" if metric in HIGHER_IS_BETTER else "<="
    if sign != right:
        raise ValueError(f"{text!r} is no bound on {metric}; write '{metric}{right}VALUE'")
    try:
        return metric, float(value)
    except ValueError:
        raise ValueError(f"{text!r}: {value!r} is no number") from None


def _relative(text: str) -> float | None:
    if ratio := _RATIO.match(text):
        bottom = float(ratio[2])
        if bottom == 0:
            raise ValueError(f"{text!r} divides by zero")
        return float(ratio[1]) / bottom
    if share := _SHARE.match(text):
        return float(share[1]) / (100.0 if share[2] == "%" else 1.0)
    return None


def _amount(metric: str, text: str) -> float:
    match = _AMOUNT.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not an amount of {metric}")
    units = UNITS[metric]
    unit = match[2].lower()
    if unit and unit not in units:
        raise ValueError(f"{match[2]!r} is not a unit of {metric}: use one of {', '.join(units)}")
    return float(match[1]) * units.get(unit, 1.0)


def _positive(value: float, text: str) -> float:
    if not value > 0:
        raise ValueError(f"{text!r}: a limit is greater than zero")
    return value
