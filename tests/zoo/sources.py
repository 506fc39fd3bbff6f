"""The files users would upload: each network of the zoo through every exporter and opset."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from dataclasses import dataclass
from typing import Literal

import onnx
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from tests.zoo import ZOO, Entry

Exporter = Literal["pt2", "script", "dynamo"]


@dataclass(frozen=True)
class Source:
    """One kind of file: torch.export's archive, or ONNX by the TorchScript or the dynamo exporter at an opset."""

    exporter: Exporter
    opset: int | None = None
    batch: Literal["symbolic", "fixed"] = "symbolic"

    def __str__(self) -> str:
        opset = "" if self.opset is None else f" {self.opset}"
        return f"{self.exporter}{opset}{'' if self.batch == 'symbolic' else ' fixed'}"


SOURCES = (
    Source("pt2"),
    Source("pt2", batch="fixed"),
    *(Source("script", opset) for opset in (13, 17, 18)),
    Source("dynamo", 18),
    Source("dynamo", 21),
    Source("script", 17, "fixed"),
    Source("dynamo", 18, "fixed"),
)


# The dynamo exporter parses its 500 translations anew for every file, which takes as long as the export itself.
ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]


class CannotExport(Exception):
    """The exporter itself can't write this network at this opset."""


@functools.cache
def program(name: str, symbolic: bool = True) -> torch.export.ExportedProgram:
    """Return torch.export's program of a network."""
    entry = ZOO[name]
    shapes = tuple({0: torch.export.Dim("batch")} for _ in entry.shapes) if symbolic else None
    inputs = entry.inputs(2 if symbolic else 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(entry.network(), inputs, dynamic_shapes=shapes)


@functools.cache
def exported(name: str, source: Source) -> bytes:
    """Return the file. Raises CannotExport where the exporter gives up or writes another opset."""
    buffer = io.BytesIO()
    if source.exporter == "pt2":
        torch.export.save(program(name, source.batch == "symbolic"), buffer)
        return buffer.getvalue()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            _to_onnx(ZOO[name], source, buffer)
    except Exception as error:
        raise CannotExport(str(error).splitlines()[0][:200]) from error
    found = {item.domain: item.version for item in onnx.load_from_string(buffer.getvalue()).opset_import}[""]
    if found != source.opset:
        raise CannotExport(f"writes opset {found} instead")
    return buffer.getvalue()


def _to_onnx(entry: Entry, source: Source, buffer: io.BytesIO) -> None:
    symbolic = source.batch == "symbolic"
    if source.exporter == "dynamo":
        held = program(entry.name, symbolic)
        torch.onnx.export(held, (), buffer, dynamo=True, opset_version=source.opset, verbose=False)
        return
    names = [f"in{index}" for index in range(len(entry.shapes))]
    torch.onnx.export(
        entry.network(),
        entry.inputs(2 if symbolic else 1),
        buffer,
        dynamo=False,
        opset_version=source.opset,
        input_names=names,
        dynamic_axes={name: {0: "batch"} for name in names} if symbolic else None,
    )
