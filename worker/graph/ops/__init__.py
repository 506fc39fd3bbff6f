"""THE op table: how each op is read from ONNX and aten, how channels and grids flow, how it is written to ONNX."""

from worker.graph.ops import (
    activations,
    attention,
    joins,
    moves,
    norms,
    padding,
    parametric,
    pooling,
    recurrent,
    reductions,
    repeating,
    reshaping,
    resizing,
    shuffles,
)
from worker.graph.ops.honoured import read_aten_call, read_onnx_call
from worker.graph.ops.table import ATEN, ONNX, OPS, AtenCall, Grid, OnnxCall, Op, by_onnx_type, op_of

__all__ = [
    "ATEN",
    "ONNX",
    "OPS",
    "AtenCall",
    "Grid",
    "OnnxCall",
    "Op",
    "by_onnx_type",
    "op_of",
    "read_aten_call",
    "read_onnx_call",
]

_FAMILIES = (
    parametric,
    norms,
    activations,
    joins,
    pooling,
    reductions,
    resizing,
    reshaping,
    moves,
    repeating,
    padding,
    shuffles,
    attention,
    recurrent,
)
