"""What pages show, from the JSON the API answers with: pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from app.commands.devicesheet import KINDS
from app.domain.cost import METRICS
from app.domain.methods import METHODS, Training, is_trained
from app.domain.opsets import DEFAULT, LOWEST
from app.domain.words import amount, figure, percent, quality_label
from app.web.charts import Bar, Point

Json = dict[str, Any]

STAGES = ("baseline", "sensitivity", "search", "polish", "train", "holdout", "export", "verify")
QUALITIES = ("accuracy", "agreement", "kl")
COMPARED = ("accuracy", "top5", "miou")
METHOD_FIELDS: Mapping[str, Any] = {
    "methods": [{"name": kind.name, "paper": kind.paper, "trains": is_trained(kind)} for kind in METHODS.values()],
    "training": [item.name for item in fields(Training)],
    "opsets": [*range(LOWEST, DEFAULT + 1)],
}
"""What the form of a new search offers of methods and exports."""


def layer_rows(graph: Mapping[str, Any]) -> list[Json]:
    """Return the layer table of a model: weights, MACs and the share of all MACs, at full width."""
    rows = []
    for layer in graph["layers"]:
        weights = math.prod(layer["weight_shape"])
        rows.append({**layer, "weights": weights, "macs": weights * layer["positions"]})
    total = sum(row["macs"] for row in rows) or 1
    return [{**row, "share": row["macs"] / total} for row in rows]


def refusal_rows(problem: Mapping[str, Any]) -> list[Json]:
    """Return what a problem found and where, each thing once: of operators that are not read, type, count and nodes."""
    found: dict[str, list[str]] = {}
    for error in problem.get("errors") or []:
        found.setdefault(str(error.get("detail") or error.get("code") or ""), []).append(
            str(error.get("pointer") or "")
        )
    return [{"what": what, "count": len(where), "where": where} for what, where in found.items()]


def quality_of(item: Mapping[str, Any], metric: str | None = None) -> tuple[str, float | None]:
    """Return the name and value of what is to be shown of a trial or candidate: its search's metric; where that is not
    known accuracy, else agreement with the float network, else KL."""
    metrics = flat_metrics(item)
    order = QUALITIES if metric is None else (metric, *QUALITIES)
    name = next((name for name in order if metrics.get(name) is not None), None)
    return (metric or QUALITIES[-1], None) if name is None else (name, float(metrics[name]))


def flat_metrics(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the metrics on the evaluation set: a candidate's lie under its name, a trial's directly."""
    metrics = item.get("metrics") or {}
    nested = metrics.get("evaluation")
    return nested if isinstance(nested, Mapping) else metrics


def points(
    trials: Sequence[Mapping[str, Any]], candidates: Sequence[Mapping[str, Any]] = (), metric: str | None = None
) -> list[Point]:
    """Return the measured trials as chart points; a candidate's leads to its page, the best one's is marked."""
    made, chosen = [], chosen_idx(candidates)
    for trial in trials:
        if not trial.get("costs"):
            continue
        name, quality = quality_of(trial, metric)
        made.append(
            Point(
                idx=trial["idx"],
                costs=trial["costs"],
                quality=quality,
                metric=name,
                feasible=bool(trial.get("feasible")),
                kind=str(trial.get("kind") or "sampled"),
                href=hrefs(candidates).get(trial["idx"]),
                chosen=trial["idx"] == chosen,
            )
        )
    return made


def quality_name(trials: Sequence[Mapping[str, Any]], metric: str | None = None) -> str:
    """Return the metric that the quality axis shows."""
    return next((quality_of(trial, metric)[0] for trial in trials if flat_metrics(trial)), metric or "accuracy")


def hrefs(candidates: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return the pages of candidates by trial number."""
    return {item["trial_idx"]: f"/candidates/{item['id']}" for item in candidates}


def chosen_idx(candidates: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the trial number of the best candidate."""
    return min(candidates, key=lambda item: item["rank"])["trial_idx"] if candidates else None


def trial_rows(
    trials: Sequence[Mapping[str, Any]], candidates: Sequence[Mapping[str, Any]] = (), metric: str | None = None
) -> list[Json]:
    """Return the trial table, newest first."""
    rows, chosen, pages = [], chosen_idx(candidates), hrefs(candidates)
    for trial in reversed(trials):
        own = {
            "costs": trial.get("costs") or {},
            "quality": figure(*quality_of(trial, metric)),
            "href": pages.get(trial["idx"]),
            "chosen": trial["idx"] == chosen,
            "seconds": trial.get("seconds"),
            "failure": (trial.get("failure") or {}).get("detail"),
        }
        rows.append({**trial, **own})
    return rows


def sliders(search: Mapping[str, Any], reachable: Mapping[str, Any] | None) -> list[Json]:
    """Return the range to ask other limits in, by limited cost: from the smallest reachable value to what the network
    with 8 bits everywhere costs, or the limit itself where that is more. None before the search has begun."""
    if not reachable:
        return []
    rows: list[Json] = []
    for metric, limit in limits_of(search).items():
        low, high = float(reachable["least"][metric]), max(float(reachable["w8a8"][metric]), limit)
        low = low if low > 0 else high / 1000
        rows += [{"metric": metric, "low": low, "high": high}] if high > low else []
    return rows


def asked_limits(text: str) -> list[Json]:
    """Return absolute limits from an address, such as "bops:2e6,weight_bytes:3e4"; what is none is left out."""
    found = []
    for part in text.split(","):
        metric, _, value = part.partition(":")
        with suppress(ValueError):
            if metric in METRICS and 0 < float(value) < math.inf:
                found.append({"metric": metric, "max": float(value)})
    return found


def filled_in(
    search: Mapping[str, Any] | None, limits: Sequence[Mapping[str, Any]], devices: Mapping[str, str]
) -> Json:
    """Return what the form of a new search begins with: what another one asked for, under other limits where there are
    some; `request` is what the form has no fields for. `devices` are ids of the newest revisions by name."""
    request = dict((search or {}).get("request") or {})
    data, own = request.get("dataset") or {}, request.get("search") or {}
    device = str(request.get("device_id") or "onnxruntime-cpu").partition("@")[0]
    space = request.get("space") or {}
    return {
        "name": f"{search['name']}, other limits"[:100] if search else "search",
        "model": request.get("model_id"),
        "data": data.get("all") if data or not request else "none",
        "is_split": bool(data) and "all" not in data,
        "device": devices.get(device, device),
        "limits": [*limits] or request.get("limits") or [],
        "trials": own.get("trials", 60),
        "seed": own.get("seed", 0),
        "runners": own.get("runners", 1),
        "sampler": own.get("sampler", "tpe"),
        "goal": own.get("goal", "best"),
        "min_keep": space.get("min_keep", 0.125),
        "prune": space.get("prune", True),
        "first_last": space.get("first_last"),
        "export_top": request.get("export_top", 1),
        "opset": (request.get("export") or {}).get("opset"),
        "request": request,
    }


def limits_of(search: Mapping[str, Any]) -> dict[str, float]:
    """Return the absolute limits of a search by metric."""
    found = (search.get("budget") or {}).get("limits") or {}
    return {metric: float(limit) for metric, limit in found.items()}


def stages(search: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the stages of a search with "done", "now" or "later"."""
    current = str(search.get("stage") or "")
    now = STAGES.index(current) if current in STAGES else -1
    finished = search.get("state") == "completed"
    marks = ["done" if finished or at < now else "now" if at == now else "later" for at in range(len(STAGES))]
    return list(zip(STAGES, marks, strict=True))


def best_quality(search: Mapping[str, Any]) -> str:
    """Return the quality of the best candidate so far, as text."""
    return quality_text(search.get("best") or {}, search.get("metric"))


def quality_text(item: Mapping[str, Any], metric: str | None = None) -> str:
    """Return the quality of a trial, candidate or baseline as text."""
    name, value = quality_of(item, metric)
    if value is None:
        return "–"
    return figure(name, value) + ("" if name == "accuracy" else f" {quality_label(name)}")


def heading(metric: str) -> str:
    """Return a quality metric as a table's head or an axis writes it."""
    name = quality_label(metric)
    return name[0].upper() + name[1:] if name.islower() and metric != "kl" else name


def quality_columns(candidate: Mapping[str, Any]) -> list[str]:
    """Return the metrics of a candidate's quality table, its search's first."""
    own = (candidate.get("metrics") or {}).get("metric")
    return list(dict.fromkeys(name for name in (own, *QUALITIES) if name))


def quality_rows(candidate: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[Json]:
    """Return the quality table of a candidate: one row per set of pictures, each figure with its change from the float
    network's (`delta`: in points of a share; None where there is nothing to compare with)."""
    before = {"evaluation": baseline.get("metrics") or {}, "holdout": baseline.get("holdout") or {}}
    rows = []
    for key, name in (("evaluation", "evaluation"), ("holdout", "hold-out")):
        own = (candidate.get("metrics") or {}).get(key) or {}
        cells = [_cell(column, own.get(column), before[key].get(column)) for column in quality_columns(candidate)]
        rows.append({"name": name, "cells": cells})
    return rows


def _cell(name: str, value: float | None, reference: float | None) -> Json:
    delta = None
    if value is not None and reference is not None and name in COMPARED:
        delta = 100 * (value - reference)
    return {"text": figure(name, value), "delta": delta}


def training_rows(candidate: Mapping[str, Any]) -> list[Json]:
    """Return the ablation of a candidate's methods: one row per method with its epochs, whether it was kept or why it
    came to nothing, and the hold-out figures without and with it."""
    steps = ((candidate.get("metrics") or {}).get("training") or {}).get("steps") or []
    return [_training_row(step, quality_columns(candidate)) for step in steps]


def _training_row(step: Json, names: Sequence[str]) -> Json:
    held = step.get("holdout") or {}
    before, after = held.get("before") or {}, held.get("after") or {}
    cells = [_cell(name, after.get(name), before.get(name)) for name in names]
    state = step.get("problem") or ("kept" if step["kept"] else "left out: no better on the evaluation pictures")
    told = {"epochs": len(step["losses"]), "seconds": step["seconds"], "losses": step["losses"]}
    return {"name": step["method"]["name"], "state": state, "kept": step["kept"], "cells": cells, **told}


def bars(rows: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Return the bars of the per-layer picture."""
    return [Bar(row["name"], row["kept"], row["channels"], row["weight_bits"], row["input_bits"]) for row in rows]


def candidate_layers(candidate: Mapping[str, Any]) -> list[Json]:
    """Return the per-layer table with kept and full output channels."""
    rows = candidate.get("layers") or []
    return [{**row, "kept": row["out_channels"], "channels": row["full_out_channels"]} for row in rows]


def check_facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what verification found, as (name, text)."""
    accuracy, latency = report.get("accuracy") or {}, report.get("latency") or {}
    sizes, costs = report.get("file_bytes") or {}, report.get("costs") or {}
    facts = [
        ("Accuracy, simulated", _share(accuracy.get("simulated"))),
        ("Accuracy, ONNX Runtime", _share(accuracy.get("onnx"))),
        ("Top-1 agreement", _share((report.get("agreement") or {}).get("top1"))),
        ("Weight bytes, recounted", _amount("weight_bytes", costs.get("weight_bytes"))),
        ("ONNX file", _amount("weight_bytes", sizes.get("onnx"))),
        ("ONNX file, float", _amount("weight_bytes", sizes.get("float_onnx"))),
        ("Latency here", _amount("latency_ms", (latency.get("compressed") or {}).get("min_ms"))),
        ("Latency here, float", _amount("latency_ms", (latency.get("float") or {}).get("min_ms"))),
        ("Speed-up here", _times(report.get("latency_ratio"))),
    ]
    return [(name, text) for name, text in facts if text is not None]


def check_notes(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return failures and remarks of a verification as (kind, text), failures first."""
    failures = [("bad", f"{item['code']}: {item['detail']}") for item in report.get("failures") or []]
    return failures + [("warn", str(note)) for note in report.get("notes") or []]


def rules_grid(profile: Mapping[str, Any]) -> tuple[list[int], list[tuple[int, list[str]]]]:
    """Return the activation widths (columns) and, by weight width, which kinds of layers each column is legal for."""
    pairs = profile["rules"]["pairs"]
    legal = {kind: {tuple(pair) for pair in pairs.get(kind) or pairs.get("default", [])} for kind in KINDS}
    every = set[tuple[int, ...]]().union(*legal.values())
    columns = sorted({a for _, a in every}, reverse=True)
    rows = sorted({w for w, _ in every}, reverse=True)
    return columns, [(w, [_kinds(legal, (w, a)) for a in columns]) for w in rows]


def _kinds(legal: Mapping[str, set[tuple[int, ...]]], pair: tuple[int, int]) -> str:
    found = [kind for kind, pairs in legal.items() if pair in pairs]
    return "all" if len(found) == len(KINDS) else ", ".join(found)


def of_several(items: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether rows belong to more than one owner: only an administrator sees such, and asks whose they are."""
    return len({item["owner_id"] for item in items}) > 1


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


def trials_of(search: Mapping[str, Any]) -> int:
    """Return how many trials a search was asked for, by its request or later."""
    asked = {**(search["request"].get("search") or {}), **(search["extended"] or {})}
    return int(asked.get("trials") or 60)


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
