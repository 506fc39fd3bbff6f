"""ONNX files made by code: a few nodes, constants and one input of four channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

INPUT = (4, 8, 8)
node = helper.make_node


def constants(**shapes: tuple[int, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Return normal float32 arrays of the given shapes."""
    rng = np.random.default_rng(0)
    return {name: np.asarray(rng.normal(size=shape), dtype=np.float32) for name, shape in shapes.items()}


def proto(
    nodes: Sequence[onnx.NodeProto],
    held: Mapping[str, np.ndarray[Any, Any]],
    opset: int = 17,
    batch: str | int = "n",
    shape: tuple[int, ...] = INPUT,
) -> onnx.ModelProto:
    """Return a model from input `x` to output `z`."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def outputs(data: bytes, x: Tensor) -> Tensor:
    """Return what ONNX Runtime computes."""
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def relative(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference over the largest wanted value; shapes must agree."""
    assert found.shape == wanted.shape
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max())
