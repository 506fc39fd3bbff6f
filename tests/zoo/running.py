"""Running networks of any number of inputs and outputs, and comparing what comes out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor, fx, nn

from tests.zoo.sources import Source, exported
from worker.graph.groups import ChannelPlan, channel_plan
from worker.graph.read import read_network
from worker.graph.rewrite import fold_batchnorm


def outputs(net: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return a network's outputs as a tuple, without gradients."""
    with torch.no_grad():
        found: Any = net(*inputs)
    return found if isinstance(found, tuple) else (found,)


def onnx_outputs(data: bytes, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return what ONNX Runtime computes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    found = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    return tuple(torch.from_numpy(item) for item in found)


def difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the largest entry of the output concerned; shapes must be equal."""
    assert [item.shape for item in found] == [item.shape for item in wanted]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))


@functools.cache
def folded(name: str) -> tuple[fx.GraphModule, ChannelPlan]:
    """Return a network of the zoo as the search sees it, and its channel plan."""
    module = fold_batchnorm(read_network(exported(name, Source("pt2"))))
    return module, channel_plan(module)
