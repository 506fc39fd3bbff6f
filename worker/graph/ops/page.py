"""The page docs/operators.md, printed from the op table."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from worker.graph.ops import OPS, Grid, Op

_GRIDS = {
    Grid.new: "gets a quantizer of its own",
    Grid.fuse: "moves the producer's quantizer behind it",
    Grid.none: "none: truth values or places",
    Grid.keep: "passes the producer's grid on",
}
_HEAD = """# Operators

What tightfit reads, runs, cuts and writes. `python -m worker.graph.ops > docs/operators.md` prints this page from the
op table; `tests/worker/graph/contracts` holds at least one use of every entry, ONNX type and aten target, each compared
with torch or ONNX Runtime. Networks come as ONNX (opset 11 and newer) or `torch.export` archives, plain or decomposed.

What is not listed is refused with the problem `unsupported-operator`, which names nodes, types and counts; so is a
listed operator with an attribute or argument that its reader does not honour. Computations on constants and on sizes
leave no operator behind. `aten.` and `.default` are left out of the targets' names.
"""


def page() -> str:
    """Return the page as Markdown."""
    entries = sorted({id(op): op for op in OPS.values()}.values(), key=lambda op: op.name)
    summary = f"{len(entries)} operators, {sum(len(op.onnx) for op in entries)} ONNX types, "
    summary += f"{sum(len(op.aten) for op in entries)} aten targets."
    rows = ["| operator | ONNX | aten | channels | quantizer |", "|---|---|---|---|---|", *map(_row, entries)]
    return "\n".join([_HEAD, summary, "", *rows, ""])


def _row(op: Op) -> str:
    targets = _listed(name.removeprefix("aten.").removesuffix(".default") for name in op.aten)
    flow = (inspect.getdoc(op.flow) or "").splitlines()[0]
    return f"| {op.name} | {_listed(op.onnx)} | {targets} | {flow} | {_GRIDS[op.grid]} |"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))
