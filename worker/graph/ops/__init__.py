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
    repeating,
    reshaping,
    shuffles,
)
from worker.graph.ops.table import ATEN, OPS, AtenCall, Grid, OnnxCall, Op, by_onnx_type, op_of

__all__ = ["ATEN", "OPS", "AtenCall", "Grid", "OnnxCall", "Op", "by_onnx_type", "op_of"]

_FAMILIES = (
    parametric,
    norms,
    activations,
    joins,
    pooling,
    reshaping,
    moves,
    repeating,
    padding,
    shuffles,
    attention,
    recurrent,
)
