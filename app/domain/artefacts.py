"""The files that an export hands out, by kind: what each is called."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of file: its name in a folder, the end of its name as a download, and what people read."""

    file: str
    suffix: str
    title: str


KINDS: dict[str, Kind] = {
    "onnx": Kind("model.onnx", ".onnx", "Quantized ONNX (QDQ)"),
    "gated-onnx": Kind("gated.onnx", ".gated.onnx", "Gated ONNX (one row at a time, skips filters)"),
    "checkpoint": Kind("model.tightfit", ".tightfit", "Packed checkpoint"),
    "pruned-onnx": Kind("pruned.onnx", ".pruned.onnx", "Pruned float ONNX"),
    "pruned-pt2": Kind("pruned.pt2", ".pruned.pt2", "Pruned float .pt2"),
    "encodings": Kind("pruned.encodings.json", ".encodings.json", "Encodings (AIMET)"),
    "config": Kind("config.yaml", ".config.yaml", "Config to apply again"),
    "report": Kind("report.json", ".report.json", "Report (JSON)"),
    "report-html": Kind("report.html", ".report.html", "Report (page)"),
}


def title_of(kind: str) -> str:
    """Return what people read of a kind: the kind itself where it is not known."""
    return KINDS[kind].title if kind in KINDS else kind


def suffix_of(kind: str) -> str:
    """Return the end of a file's name, empty for a kind that is not known."""
    return KINDS[kind].suffix if kind in KINDS else ""
