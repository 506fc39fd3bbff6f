"""What a report says, in rows and sentences: pure functions of the document that lies beside it as report.json."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.domain.words import SHARES, amount, figure, label, percent, quality_label, quality_verdict
from worker.export.drawing import Piece, heat, stack

Json = Mapping[str, Any]

BAR = 300.0
SLOWEST = 24
QUALITIES = ("accuracy", "top5", "miou", "agreement", "cosine", "mse", "kl")
KINDS = {
    "keep": ("Channels kept", "Channel group"),
    "weight": ("Weight bits", "Layer"),
    "activation": ("Activation bits", "Activation"),
}
REPAIRS = {
    "sequential": "Each layer's weights were fitted again (least squares) to the float network's outputs, on the "
    "inputs that the compressed layers before it really produce; weights below 8 bits were rounded for the layer's "
    "outputs.",
    "fast": "Each layer's weights were fitted again to the float network's outputs, from its cached moments.",
    "thorough": "Compressed again from all calibration rows and four times as many places in each layer.",
    "redrawn-1": "The thorough compression from other places.",
    "redrawn-2": "The thorough compression from other places, a second time.",
    "bias": "Each output channel's mean moved to the float network's, layer by layer (empirical bias correction, "
    "Nagel et al. 2019, section 4.2).",
}


@dataclass(frozen=True)
class Card:
    """One figure of the head: what it is, its value, a remark, and how good it is (good, warn, bad or nothing)."""

    name: str
    value: str
    remark: str
    kind: str = ""


def kind_of(document: Json) -> str:
    """Return how a report ends: bad where the files were not verified, warn where a limit is broken, else good."""
    if document["verification"]["state"] != "verified":
        return "bad"
    return "good" if not broken(document) else "warn"


def broken(document: Json) -> list[str]:
    """Return the names of what was asked for and is not kept: limits, and the quality."""
    found = [label(row["metric"]) for row in document["verification"]["budget"] if not row["met"]]
    judged = _metrics(document).get("quality")
    return [*found, quality_label(judged["metric"])] if judged and not judged["met"] else found


def verdict(document: Json) -> str:
    """Return the whole report in one sentence."""
    over, verified = broken(document), document["verification"]["state"] == "verified"
    budget = f"Over the budget ({', '.join(over)})" if over else "Inside the budget"
    joined = "but" if verified == bool(over) else "and"
    checked = f"{joined} {'verified' if verified else 'not verified'}"
    rest = [text for text in (_quality_words(document), _size_words(document), _speed_words(document)) if text]
    return f"{budget} {checked}{': ' if rest else ''}{'; '.join(rest)}."


def cards(document: Json) -> list[Card]:
    """Return the figures of the head: budget, verification, quality, size, speed."""
    return [_budget_card(document), _check_card(document), _quality_card(document), *_cost_cards(document)]


def _budget_card(document: Json) -> Card:
    rows, over = document["verification"]["budget"], broken(document)
    kept = f"{sum(row['met'] for row in rows)} of {len(rows)} limits kept"
    if over:
        return Card("Budget", "over", kept, "warn")
    tight = max(rows, key=used, default=None)
    remark = "" if tight is None else f"; tightest: {label(tight['metric'])}, {percent(used(tight), 1)} used"
    return Card("Budget", "inside", kept + remark, "good")


def used(row: Json) -> float:
    """Return the share of a limit that is used."""
    return float(row["value"]) / float(row["limit"]) if row["limit"] else math.inf


def _check_card(document: Json) -> Card:
    found = document["verification"]
    agreed = found["agreement"]
    remark = "" if agreed is None else f"{percent(agreed['top1'])} of {agreed['decisions']} answers as simulated"
    if found["state"] == "verified":
        return Card("Verification", "verified", remark, "good")
    codes = ", ".join(dict.fromkeys(item["code"] for item in found["failures"]))
    return Card("Verification", "failed", codes, "bad")


def quality(document: Json) -> tuple[str, float | None, float | None]:
    """Return the search's metric, the candidate's hold-out figure and the float network's (None: not measured)."""
    name = document["manifest"].get("metric") or "accuracy"
    return name, (_metrics(document).get("holdout") or {}).get(name), _baseline(document, "holdout").get(name)


def _quality_card(document: Json) -> Card:
    name, value, before = quality(document)
    if value is None:
        simulated = document["verification"]["accuracy"]["onnx"]
        return Card("Accuracy", percent(simulated), "on the evaluation pictures, in ONNX Runtime")
    return Card(title(name), figure(name, value), _change(name, value, before))


def _change(name: str, value: float, before: float | None) -> str:
    if before is None or name not in SHARES or name == "agreement":
        return "on the hold-out pictures"
    points = f"{100 * (value - before):+.2f}".replace("-", "−")
    return f"on the hold-out; float {figure(name, before)}, {points} points"


def _cost_cards(document: Json) -> Iterator[Card]:
    costs, ratio = document["verification"]["costs"], document["ratio_to"].get("float", {})
    if "weight_bytes" in costs:
        before = document["references"]["float"]["weight_bytes"]
        remark = f"float {amount('weight_bytes', before)}"
        if ratio.get("weight_bytes"):
            remark = f"{1 / ratio['weight_bytes']:.1f} times smaller than float ({amount('weight_bytes', before)})"
        yield Card("Weights", amount("weight_bytes", costs["weight_bytes"]), remark)
    if "latency_ms" in costs:
        yield Card("Latency", amount("latency_ms", costs["latency_ms"]), _speed_remark(document))


def _speed_remark(document: Json) -> str:
    evidence = document["verification"]["evidence"].get("latency_ms", "modelled")
    times, here = speedup(document), document["verification"]["latency_ratio"]
    told = evidence if times is None else f"{_faster(times)}, {evidence}"
    return told if here is None else f"{told}; on the verifying host {_faster(here)}"


def _faster(times: float) -> str:
    return f"{times:.2f}× float's speed"


def speedup(document: Json) -> float | None:
    """Return how many times as fast as float the network is on its device, by its evidence (None: not known)."""
    if document["verification"]["evidence"].get("latency_ms") != "measured":
        ratio = document["ratio_to"].get("float", {}).get("latency_ms")
        return 1 / ratio if ratio else None
    facts = _metrics(document).get("latency")
    if facts and facts.get("float") and facts.get("measured"):
        return float(facts["float"]["min_ms"]) / float(facts["measured"]["min_ms"])
    here: float | None = document["verification"]["latency_ratio"]
    return here


def _quality_words(document: Json) -> str:
    name, value, before = quality(document)
    if value is None:
        return ""
    known = before is not None and name in SHARES and name != "agreement"
    beside = f" (float {figure(name, before)})" if known else ""
    return f"{quality_label(name)} {figure(name, value)}{beside} on the hold-out pictures"


def _size_words(document: Json) -> str:
    costs, ratio = document["verification"]["costs"], document["ratio_to"].get("float", {})
    if not ratio.get("weight_bytes"):
        return ""
    return f"weights {amount('weight_bytes', costs['weight_bytes'])}, {1 / ratio['weight_bytes']:.1f} times smaller"


def _speed_words(document: Json) -> str:
    times, found = speedup(document), document["verification"]
    if times is None:
        return ""
    evidence = found["evidence"].get("latency_ms", "modelled")
    return f"{amount('latency_ms', found['costs']['latency_ms'])}, {times:.2f} times as fast as float ({evidence})"


def title(name: str) -> str:
    """Return a quality metric as a heading writes it."""
    text = quality_label(name)
    return text[0].upper() + text[1:] if text.islower() else text


def quality_rows(document: Json) -> list[dict[str, Any]]:
    """Return every metric that was measured: the candidate's and the float network's on both sets of pictures."""
    own, name = _metrics(document), quality(document)[0]
    found = []
    for metric in dict.fromkeys((name, *QUALITIES)):
        values = [(own.get(role) or {}).get(metric) for role in ("evaluation", "holdout")]
        before = [_baseline(document, role).get(metric) for role in ("metrics", "holdout")]
        if any(value is not None for value in values):
            texts = [figure(metric, value) for value in (values[0], before[0], values[1], before[1])]
            found.append({"name": title(metric), "texts": texts})
    return found


def judged_words(document: Json) -> str:
    """Return what became of the quality that was asked for, or nothing where none was."""
    judged = _metrics(document).get("quality")
    return quality_verdict(judged) if judged else ""


def operations(why: Json) -> list[dict[str, Any]]:
    """Return the slowest operations with their bars; the whole network's own share comes last where there is one."""
    rows = [*why["operations"][:SLOWEST]]
    longest = max((row["latency_ms"] for row in rows), default=0.0)
    fixed = sum(why["network"].values())
    if fixed > 0:
        longest = max(longest, fixed)
        own = {"name": "whole network", "kind": "once per inference", "latency_ms": fixed, "parts": why["network"]}
        rows.append({**own, "bound": max(why["network"], key=why["network"].get), "references": {}})
    total = why["latency_ms"] or 1.0
    return [{**row, "share": row["latency_ms"] / total, "pieces": _pieces(row, longest)} for row in rows]


def _pieces(row: Json, longest: float) -> list[Piece]:
    return stack(row["parts"], longest, BAR)


def curves(found: Sequence[Json] | None) -> list[dict[str, Any]]:
    """Return the sensitivities by kind, each with its levels and what the chosen one adds to the loss."""
    kinds = dict.fromkeys(item["kind"] for item in found or ())
    return [_of_kind(kind, [item for item in found or () if item["kind"] == kind]) for kind in kinds]


def _of_kind(kind: str, found: Sequence[Json]) -> dict[str, Any]:
    worst = max((loss for item in found for _, loss in item["levels"]), default=0.0)
    heading, what = KINDS.get(kind, (kind, "Choice"))
    rows = []
    for item in found:
        levels = heat(item, worst)
        adds = next((level.loss for level in levels if level.chosen), None)
        rows.append({"name": item["name"], "levels": levels, "adds": adds})
    return {"heading": heading, "what": what, "rows": rows}


def operators(found: Json) -> list[tuple[str, int, str]]:
    """Return the operators of the runtime's graph with their counts: good computes in integers, warn only converts."""
    converts = ("QuantizeLinear", "DequantizeLinear")
    looks = {name: "warn" if name in converts else "good" if name.startswith("Q") else "" for name in found}
    return [(name, found[name], looks[name]) for name in sorted(found)]


def sqnr_words(found: Json) -> str:
    """Return how closely the runtime's codes follow the simulation's over all sites, in a sentence."""
    values = list(found["site_sqnr_db"].values())
    if not values:
        return "No site was compared."
    equal = sum(value >= 200 for value in values)
    if equal == len(values):
        return f"At all {len(values)} quantizer sites the runtime's codes equal the simulation's."
    said = f"{len(values)} quantizer sites: median {statistics.median(values):.1f} dB, lowest {min(values):.1f} dB"
    return f"{said}; at {equal} of them the codes are equal."


def checks(document: Json) -> list[tuple[str, str]]:
    """Return what verification found, as (name, text)."""
    found, costs = document["verification"], document["verification"]["costs"]
    shares = {name: found["accuracy"][key] for name, key in (("simulated", "simulated"), ("ONNX Runtime", "onnx"))}
    facts = [(f"Accuracy, {name}", percent(value)) for name, value in shares.items() if value is not None]
    agreed, stored = found["agreement"], found["checkpoint"]
    if agreed is not None:
        facts += [("Same answers", percent(agreed["top1"])), ("Outputs follow within", f"{agreed['sqnr_db']:.1f} dB")]
    other = found.get("second_opinion") or {}
    if other.get("agreement"):
        name = f"{other['runtime']} {other['version']}"
        facts.append((f"Same answers in {name}", percent(other["agreement"]["top1"])))
        facts.append((f"Outputs in {name} follow within", f"{other['agreement']['sqnr_db']:.1f} dB"))
    if found.get("opset") is not None:
        facts.append(("Opset of the ONNX file", str(found["opset"])))
    if stored is not None:
        facts.append(("Reloaded checkpoint, largest error", f"{stored['max_error']:.2e}"))
    if found["layers"]:
        facts.append(("Weight bytes, recounted", f"{costs['weight_bytes']:,.0f}"))
    sparse = [layer for layer in found["layers"] if layer.get("form") == "sparse"]
    if sparse:
        taken = sum(layer["stored_bytes"] for layer in found["layers"])
        facts.append((f"Layers, sparse in the checkpoint: {len(sparse)}", f"{taken:,} B for all"))
    facts += [(_FILES.get(name, name), f"{size:,} B") for name, size in sorted(found["file_bytes"].items())]
    facts += [(f"{title(name)} file, {_runs(item)}", _span(item)) for name, item in sorted(found["latency"].items())]
    return facts if found["latency_ratio"] is None else [*facts, ("Speed-up", f"{found['latency_ratio']:.2f}×")]


_FILES = {"onnx": "ONNX file", "checkpoint": "Checkpoint file", "float_onnx": "Float ONNX file"}


def _runs(item: Json) -> str:
    return f"{item['runs']} runs"


def _span(item: Json) -> str:
    least, median = (amount("latency_ms", item[key]) for key in ("min_ms", "median_ms"))
    return f"{least} (median {median})"


CONDITIONS = {
    "no_data": "No data were given: calibrated and compared with the float network on inputs from its BatchNorms.",
    "equalised": "Cross-layer equalisation: the device has one weight scale per tensor.",
    "absorbed": "High biases absorbed: what channels never fall below lies in the next layers' biases.",
}
"""What may be done to a float network before the search."""


def repair_steps(document: Json) -> list[dict[str, str]]:
    """Return how the network was repaired and polished: every step in words, kept or not, and the loss it came to."""
    candidate, polished = document.get("candidate") or {}, _metrics(document).get("polish")
    base = str((polished or {}).get("repair") or candidate.get("repair") or "").split("+")[0]
    rows = [{"name": base, "text": REPAIRS.get(base, ""), "loss": "", "state": "applied"}] if base else []
    done = [name for name in CONDITIONS if document["manifest"].get(name)]
    rows[:0] = [{"name": name, "text": CONDITIONS[name], "loss": "", "state": "applied"} for name in done]
    for step in (polished or {}).get("steps", ()):
        after = "not measured" if step["after"] is None else f"{step['before']:.5f} → {step['after']:.5f}"
        state = "kept" if step["kept"] else "left out"
        rows.append({"name": step["name"], "text": REPAIRS.get(step["name"], ""), "loss": after, "state": state})
    return rows + [_training_row(step) for step in (_metrics(document).get("training") or {}).get("steps", ())]


def _training_row(step: Json) -> dict[str, str]:
    """Return what a method did: epochs and the hold-out figures in words, the loss on the evaluation pictures."""
    name = step["method"]["name"]
    if step["problem"] is not None:
        return {"name": name, "text": str(step["problem"]), "loss": "not measured", "state": "failed"}
    text = f"Trained {len(step['losses'])} epochs in {step['seconds']:.0f} s."
    held = step.get("holdout") or {}
    pair = [100 * item["accuracy"] for key in ("before", "after") if "accuracy" in (item := held.get(key) or {})]
    if len(pair) == 2:
        text += f" Hold-out accuracy {pair[0]:.2f} → {pair[1]:.2f} %."
    loss = f"{step['before']['kl']:.5f} → {step['after']['kl']:.5f}"
    return {"name": name, "text": text, "loss": loss, "state": "kept" if step["kept"] else "left out"}


def provenance(document: Json) -> list[tuple[str, str]]:
    """Return what the files were made with, as (name, text): seeds, digests, versions, machine."""
    manifest, held = document["manifest"], document["manifest"].get("provenance") or {}
    names, machine = manifest.get("names") or {}, document["verification"]["host"]
    rows: dict[str, Any] = {
        "Network": names.get("model"),
        "Device": manifest.get("device"),
        "Search": manifest.get("search_id"),
        "Candidate": (document.get("candidate") or {}).get("id"),
        "Seed": manifest.get("seed"),
        "Sampler": held.get("sampler"),
        "Trials ran on": held.get("processor"),
        "Assignment (SHA-256)": manifest.get("assignment_digest"),
        "Network (SHA-256)": held.get("model_sha256") or names.get("model_sha256"),
        "Weights (SHA-256)": held.get("weights_sha256"),
        "Device profile (SHA-256)": held.get("device_sha256"),
        "Measurements' context": held.get("context"),
        "Data": "none were given" if manifest.get("no_data") else None,
        **{f"Data, {role} (SHA-256)": sha for role, sha in sorted((held.get("datasets") or {}).items())},
        "Verified on": _machine(machine),
        "Versions": _versions(manifest.get("versions") or {}),
    }
    return [(name, str(value)) for name, value in rows.items() if value not in (None, "")]


def _versions(found: Json) -> str:
    return ", ".join(f"{name} {text}" for name, text in sorted(found.items()) if text)


def _machine(host: Json) -> str:
    features = ", ".join(host.get("features") or ()) or "no integer dot product"
    return f"{host.get('processor')} ({features}), {host.get('cores')} cores, ONNX Runtime {host.get('onnxruntime')}"


def _metrics(document: Json) -> Json:
    return document["manifest"].get("metrics") or {}


def _baseline(document: Json, role: str) -> Json:
    found = (document.get("search") or {}).get("baseline") or {}
    return found.get(role) or {}
