"""What pages show, from the JSON the API answers with: pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from app.commands.words import amount, percent
from app.web.charts import Bar, Point

Json = dict[str, Any]

STAGES = ("baseline", "sensitivity", "search", "holdout", "export", "verify")
QUALITIES = ("accuracy", "agreement", "kl")


def layer_rows(graph: Mapping[str, Any]) -> list[Json]:
    """Return the layer table of a model: weights, MACs and the share of all MACs, at full width."""
    rows = []
    for layer in graph["layers"]:
        weights = math.prod(layer["weight_shape"])
        rows.append({**layer, "weights": weights, "macs": weights * layer["positions"]})
    total = sum(row["macs"] for row in rows) or 1
    return [{**row, "share": row["macs"] / total} for row in rows]


def quality_of(item: Mapping[str, Any]) -> tuple[str, float | None]:
    """Return the name and value of the best quality figure known of a trial or candidate: accuracy, else agreement
    with the float network, else KL (negated, so that more is better)."""
    metrics = flat_metrics(item)
    for name in QUALITIES[:2]:
        if metrics.get(name) is not None:
            return name, float(metrics[name])
    kl = metrics.get("kl")
    return "KL", None if kl is None else -float(kl)


def flat_metrics(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the metrics of the evaluation set, however deep they lie."""
    metrics = item.get("metrics") or {}
    for fidelity in ("full", "evaluation", "screen"):
        nested = metrics.get(fidelity)
        if isinstance(nested, Mapping):
            return nested.get("metrics", nested)
    return metrics


def points(trials: Sequence[Mapping[str, Any]], chosen: int | None = None) -> list[Point]:
    """Return the measured trials as chart points."""
    made = []
    for trial in trials:
        if not trial.get("costs"):
            continue
        made.append(
            Point(
                idx=trial["idx"],
                costs=trial["costs"],
                quality=quality_of(trial)[1],
                feasible=bool(trial.get("feasible")),
                kind=str(trial.get("kind") or "sampled"),
                href=candidate_href(trial),
                chosen=trial["idx"] == chosen,
            )
        )
    return made


def quality_name(trials: Sequence[Mapping[str, Any]]) -> str:
    """Return what the quality axis shows."""
    return next((quality_of(trial)[0] for trial in trials if flat_metrics(trial)), "accuracy")


def candidate_href(trial: Mapping[str, Any]) -> str | None:
    """Return the page of a trial's candidate, if it became one."""
    id = trial.get("candidate_id")
    return f"/candidates/{id}" if id else None


def trial_rows(trials: Sequence[Mapping[str, Any]], chosen: int | None) -> list[Json]:
    """Return the trial table, newest first."""
    rows = []
    for trial in reversed(trials):
        problem = trial.get("problem") or trial.get("error")
        rows.append(
            {
                **trial,
                "costs": trial.get("costs") or {},
                "quality": quality_of(trial)[1],
                "href": candidate_href(trial),
                "chosen": trial["idx"] == chosen,
                "seconds": trial.get("seconds"),
                "problem": problem.get("detail") if isinstance(problem, Mapping) else problem,
            }
        )
    return rows


def limits_of(search: Mapping[str, Any]) -> dict[str, float]:
    """Return the absolute limits of a search by metric."""
    budget = search.get("budget") or {}
    found = budget.get("limits", budget)
    if isinstance(found, Mapping):
        return {metric: float(limit) for metric, limit in found.items() if isinstance(limit, int | float)}
    return {limit["metric"]: float(limit["max"]) for limit in found if limit.get("max") is not None}


def stages(search: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the stages of a search with "done", "now" or "later"."""
    current = str(search.get("stage") or "")
    now = STAGES.index(current) if current in STAGES else -1
    finished = search.get("state") == "completed"
    marks = ["done" if finished or at < now else "now" if at == now else "later" for at in range(len(STAGES))]
    return list(zip(STAGES, marks, strict=True))


def best_accuracy(search: Mapping[str, Any]) -> float | None:
    """Return the accuracy of the best candidate so far."""
    value = flat_metrics(search.get("best") or {}).get("accuracy")
    return None if value is None else float(value)


def quality_text(item: Mapping[str, Any]) -> str:
    """Return the quality of a trial, candidate or baseline as text."""
    name, value = quality_of(item)
    if value is None:
        return "–"
    return f"{-value:.4f} KL" if name == "KL" else percent(value) + ("" if name == "accuracy" else f" {name}")


def quality_rows(candidate: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[Json]:
    """Return the quality table of a candidate: one row per set of pictures, with the change from the float network."""
    rows = []
    for name, values in (candidate.get("metrics") or {}).items():
        if not isinstance(values, Mapping):
            continue
        own = values.get("metrics", values)
        accuracy = own.get("accuracy")
        before = baseline_accuracy(baseline, name)
        delta = None if accuracy is None or before is None else accuracy - before
        rows.append(
            {"name": name, "accuracy": accuracy, "delta": delta, "agreement": own.get("agreement"), "kl": own.get("kl")}
        )
    return rows


def baseline_accuracy(baseline: Mapping[str, Any], fidelity: str) -> float | None:
    """Return the float network's accuracy on one set of pictures."""
    metrics = baseline.get("metrics") or {}
    nested = metrics.get(fidelity)
    if isinstance(nested, Mapping):
        value = nested.get("metrics", nested).get("accuracy")
    else:
        value = metrics.get("accuracy") if fidelity in ("full", "evaluation") else None
    return None if value is None else float(value)


def bars(rows: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Return the bars of the per-layer picture."""
    return [Bar(row["name"], row["kept"], row["channels"], row["weight_bits"], row["input_bits"]) for row in rows]


def candidate_layers(candidate: Mapping[str, Any]) -> list[Json]:
    """Return the per-layer table with kept and full output channels."""
    rows = []
    for layer in candidate.get("layers") or []:
        kept = int(layer["out_channels"])
        rows.append({**layer, "kept": kept, "channels": int(layer.get("channels") or kept)})
    return rows


def check_facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what verification found, as (name, text)."""
    latency = report.get("latency") or report
    facts = [
        ("Accuracy, simulated", _share(report.get("accuracy_sim"))),
        ("Accuracy, ONNX Runtime", _share(report.get("accuracy_ort"))),
        ("Top-1 agreement", _share(report.get("agreement"))),
        ("Latency, float", _amount("latency_ms", latency.get("float_ms"))),
        ("Latency, compressed", _amount("latency_ms", latency.get("compressed_ms"))),
        ("Speed-up", _times(latency.get("ratio"))),
        ("Weight bytes, recounted", _amount("weight_bytes", report.get("weight_bytes"))),
    ]
    return [(name, text) for name, text in facts if text is not None]


def moment(text: str | None, now: datetime | None = None) -> str:
    """Return a timestamp as people say it: "3 min ago", then the date."""
    if not text:
        return "–"
    at = datetime.fromisoformat(text)
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    age = ((now or datetime.now(UTC)) - at).total_seconds()
    if age < 45:
        return "just now"
    if age < 3600:
        return f"{round(age / 60)} min ago"
    return f"{round(age / 3600)} h ago" if age < 86400 else f"{at:%Y-%m-%d %H:%M}"


def brief(value: Any) -> str:
    """Return a declared value, floats shortened."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(brief(item) for item in value) + "]"
    return str(value)


def _share(value: float | None) -> str | None:
    return None if value is None else percent(value)


def _amount(metric: str, value: float | None) -> str | None:
    return None if value is None else amount(metric, value)


def _times(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}×"
