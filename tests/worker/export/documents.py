"""Reports as documents, by hand: one of an export where all went well, one of a file that could not be checked."""

from __future__ import annotations

import copy
from typing import Any

Json = dict[str, Any]


def layer(name: str, kept: int, full: int, bits: tuple[int, int]) -> Json:
    return {
        "name": name, "kind": "conv", "in_channels": 3, "out_channels": kept, "full_out_channels": full,
        "keep_ratio": kept / full, "weight_bits": bits[0], "input_bits": bits[1], "output_bits": 8, "macs": 1000,
        "bops": 32_000, "weight_bytes": 1234, "latency_ms": 0.02,
    }  # fmt: skip


def point(trial: int, kind: str, feasible: bool, quality: float, bops: float) -> Json:
    rank = 1 if trial == 2 else None
    return {
        "trial": trial, "kind": kind, "rank": rank, "feasible": feasible, "quality": quality,
        "costs": {"bops": bops, "weight_bytes": bops / 100},
    }  # fmt: skip


PARTS = {"compute": 0.03, "memory": 0.006, "padding": 0.0, "boundary": 0.004, "overhead": 0.0, "fallback": 0.0}
NOTHING = dict.fromkeys(PARTS, 0.0)
WHY = {
    "latency_ms": 0.05, "evidence": "modelled", "bound": "compute", "verdict": "2.00 times as fast; 60% is compute",
    "parts": {**PARTS, "overhead": 0.01}, "network": {**NOTHING, "overhead": 0.01},
    "references": {name: {"latency_ms": 0.1, "parts": PARTS} for name in ("float", "w8a8")},
    "operations": [
        {"name": "stem", "kind": "conv", "latency_ms": 0.04, "share": 0.8, "bound": "compute", "parts": PARTS,
         "references": {"float": 0.09, "w8a8": 0.05}},
    ],
    "changes": [{"kind": "keep", "target": "stem", "before": 12, "after": 8, "saving_ms": 0.011,
                 "text": "keep 8 instead of 12 channels of stem"}],
    "more_operations": 0,
}  # fmt: skip
BUDGET = [
    {"metric": "bops", "limit": 2e6, "value": 1.5e6, "slack": 5e5, "evidence": "measured", "met": True,
     "origin": "request"},
    {"metric": "peak_activation_bytes", "limit": 1000, "value": 990, "slack": 10, "evidence": "modelled",
     "met": True, "origin": "device"},
]  # fmt: skip
LATENCY = {"min_ms": 0.08, "median_ms": 0.09, "p95_ms": 0.1, "runs": 40}
VERIFICATION = {
    "state": "verified", "failures": [], "accuracy": {"simulated": 0.97, "onnx": 0.97},
    "agreement": {"top1": 0.999, "max_error": 0.1, "sqnr_db": 41.2, "pictures": 500, "decisions": 500},
    "outputs": {}, "checkpoint": {"top1": 1.0, "max_error": 0.0, "sqnr_db": 200.0, "pictures": 256, "decisions": 256},
    "site_sqnr_db": {"relu": 31.5, "image": 200.0}, "worst_layers": [
        {"site": "relu", "layer": "stem", "sqnr_db": 31.5}, {"site": "image", "layer": None, "sqnr_db": 200.0}],
    "costs": {"bops": 1.5e6, "weight_bytes": 1234.0, "latency_ms": 0.05}, "evidence": {"latency_ms": "modelled"},
    "budget": BUDGET, "layers": [{"name": "stem"}], "latency": {"float": {**LATENCY, "min_ms": 0.2},
                                                               "compressed": LATENCY},
    "latency_ratio": 2.5, "operators": {"QLinearConv": 7, "DequantizeLinear": 1, "Clip": 1},
    "file_bytes": {"onnx": 20_000, "checkpoint": 18_000, "float_onnx": 80_000},
    "host": {"processor": "EPYC", "features": ["avx512_vnni"], "cores": 2, "onnxruntime": "1.23"},
    "notes": ["no integer dot product"],
}  # fmt: skip
MANIFEST = {
    "search_id": "srh_1", "names": {"model": "resnet8"}, "metric": "accuracy", "device": "npu", "seed": 7,
    "metrics": {
        "metric": "accuracy", "evaluation": {"accuracy": 0.97, "kl": 0.01}, "holdout": {"accuracy": 0.962, "kl": 0.02},
        "quality": {"metric": "accuracy", "floor": 0.95, "value": 0.962, "met": True},
        "polish": {"repair": "sequential+bias", "steps": [
            {"name": "thorough", "before": 0.02, "after": None, "kept": False},
            {"name": "bias", "before": 0.02, "after": 0.015, "kept": True}]},
    },
    "assignment_digest": "ab" * 32, "versions": {"torch": "2.13.0", "onnx": "1.19"}, "equalised": True,
    "provenance": {"sampler": "tpe", "processor": "cpu", "model_sha256": "cd" * 32, "datasets": {"all": "ef" * 32}},
}  # fmt: skip
FRONT = {
    "metric": "accuracy", "axes": ["bops", "weight_bytes"], "limits": {"bops": 2e6}, "left_out": 5,
    "points": [point(0, "baseline", False, 0.98, 8e6), point(1, "seed", True, 0.95, 1e6),
               point(2, "sampled", True, 0.97, 1.5e6), point(3, "sampled", False, 0.975, 3e6),
               point(4, "move", True, 0.94, 1.6e6)],
}  # fmt: skip
SENSITIVITY = [
    {"kind": "keep", "name": "stem", "chosen": 12, "levels": [[16, 0.0], [12, 0.01], [4, 0.16]]},
    {"kind": "weight", "name": "stem", "chosen": 4, "levels": [[8, 0.0], [4, 0.002]]},
]


def document() -> Json:
    """Return a report of two layers; whoever changes it has a copy of their own."""
    return copy.deepcopy({
        "verification": VERIFICATION,
        "references": {"float": {"weight_bytes": 9872.0}, "w8a8": {"weight_bytes": 2468.0}},
        "ratio_to": {"float": {"weight_bytes": 0.125, "latency_ms": 0.5}, "w8a8": {"weight_bytes": 0.5}},
        "manifest": MANIFEST,
        "candidate": {"id": "cnd_1", "trial": 2, "rank": 1, "repair": "sequential+bias", "why": WHY,
                      "layers": [layer("stem", 12, 16, (4, 8)), layer("head", 10, 10, (8, 8))]},
        "search": {"name": "nightly", "front": FRONT, "sensitivity": SENSITIVITY,
                   "baseline": {"metrics": {"accuracy": 0.98}, "holdout": {"accuracy": 0.97}}},
    })  # fmt: skip


def unchecked() -> Json:
    """Return a report of an export whose file could not even be loaded, and that nothing of a search was told of."""
    found = document()
    empty: Json = {"agreement": None, "checkpoint": None, "site_sqnr_db": {}, "worst_layers": [], "layers": []}
    empty |= {"latency": {}, "latency_ratio": None, "operators": {}, "accuracy": {"simulated": None, "onnx": None}}
    failures = [{"code": "onnx-outputs-error", "detail": "Fail: no such operator"}]
    found["verification"] |= {**empty, "state": "failed", "failures": failures, "notes": []}
    found["manifest"] = {"device": "npu", "seed": 3, "versions": {"onnx": None}}
    return {key: value for key, value in found.items() if key not in ("candidate", "search")}
