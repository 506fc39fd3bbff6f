"""Numbers and verdicts as text: pure functions, shared by the command line, the dashboard and reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LABELS = {
    "macs": "MACs",
    "bops": "BOPs",
    "weight_bytes": "Weight bytes",
    "peak_activation_bytes": "Peak activation bytes",
    "latency_ms": "Latency",
    "energy_mj": "Energy",
}


QUALITIES = {"accuracy": "accuracy", "top5": "top-5", "miou": "mIoU", "mse": "MSE", "kl": "KL"}
SHARES = frozenset({"accuracy", "top5", "miou", "agreement"})


def quality_label(name: str) -> str:
    """Return the name of a quality metric as headings write it."""
    return QUALITIES.get(name, name)


def figure(name: str, value: float | None) -> str:
    """Return a quality metric's value: shares as per cent, all else as a number."""
    if value is None:
        return "–"
    return percent(value) if name in SHARES else f"{value:.4g}" if name == "mse" else f"{value:.4f}"


def label(metric: str) -> str:
    """Return the name of a metric as headings write it."""
    return LABELS.get(metric, metric)


def amount(metric: str, value: float | None) -> str:
    """Return a value with its unit, three significant digits."""
    if value is None:
        return "–"
    if metric.endswith("bytes"):
        return scaled(value, ("B", "kB", "MB", "GB"))
    if metric == "latency_ms":
        return f"{value:.3g} ms" if abs(value) >= 0.1 else f"{value * 1e3:.3g} µs"
    if metric == "energy_mj":
        return f"{value:.3g} mJ" if abs(value) >= 0.1 else f"{value * 1e3:.3g} µJ"
    return scaled(value, ("", "k", "M", "G", "T", "P"))


def scaled(value: float, units: tuple[str, ...]) -> str:
    """Return `value` with three significant digits and the decimal unit that fits."""
    size, step = abs(value), 0
    while size >= 999.5 and step < len(units) - 1:
        size, step = size / 1e3, step + 1
    shown = value / 1e3**step
    digits = f"{shown:.0f}" if step == 0 and float(shown).is_integer() else f"{shown:.3g}"
    return f"{digits} {units[step]}".strip()


def percent(value: float | None, digits: int = 2) -> str:
    """Return a share as per cent."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """Return a time span as people say it."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def verdict(search: Mapping[str, Any]) -> str:
    """Return what became of a search, in one sentence."""
    state, outcome = search.get("state"), search.get("outcome")
    if state == "failed":
        reason = (search.get("error") or search.get("problem") or {}).get("detail") or ""
        return f"The search failed. {reason}".strip()
    if state == "cancelled":
        return "The search was cancelled."
    if state != "completed":
        return f"The search is {state}."
    if outcome == "feasible":
        return "Inside the budget: every limit is kept."
    if outcome == "best_effort" and (search.get("request") or {}).get("quality"):
        return "Best effort: no measured candidate keeps every limit and the quality that was asked for."
    if outcome == "best_effort":
        return "Best effort: no measured candidate keeps every limit; this one breaks them least."
    return "Nothing could be measured."


def quality_verdict(judged: Mapping[str, Any]) -> str:
    """Return whether a candidate keeps the quality that was asked for, in a few words."""
    name = judged["metric"]
    floor, sign = (judged["floor"], "≥") if "floor" in judged else (judged["ceiling"], "≤")
    kept = "kept" if judged["met"] else "broken"
    return f"{quality_label(name)} {figure(name, judged['value'])}, asked for {sign} {figure(name, floor)}: {kept}"


WARNINGS = {
    "profile-stale": "What was measured with this device profile lies far from what it says.",
    "latency-fallback": "Some operations' times are guesses: the host runs them, or none like them was measured.",
    "no-data": "No data were given: every figure is likeness to the float network on inputs that were drawn from its "
    "BatchNorms. How right its answers are on real data, nobody has measured.",
    "baseline-is-guessing": "The float network is no better than guessing on these labels: are they the right ones, "
    "in the order of the network's classes?",
}


def warnings(found: Mapping[str, Any]) -> list[str]:
    """Return what a record warns of, in sentences."""
    return [WARNINGS.get(name, name) for name in found.get("warnings") or ()]


def exit_code(search: Mapping[str, Any]) -> int:
    """Return the exit code that tells scripts what became of a search: 0 feasible, 3 best effort, 1 anything else."""
    if search.get("state") != "completed":
        return 1
    return {"feasible": 0, "best_effort": 3}.get(str(search.get("outcome")), 1)
