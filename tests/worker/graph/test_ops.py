"""Every attribute of an op is honoured or refused: outputs equal ONNX Runtime's and torch's, never nearly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.worker.graph.models import INPUT, constants, node, outputs, proto, relative
from tests.worker.graph.nets import exported
from worker.graph.errors import NetworkRefused
from worker.graph.read import read_network
from worker.graph.rewrite import fold_batchnorm
from worker.graph.write_onnx import write_float

TOLERANCE = 1e-5
CONV = node("Conv", ["x", "w"], ["y"], name="conv")
WEIGHT = constants(w=(6, 4, 1, 1))
FLAT = node("Flatten", ["x"], ["f"])
MATRIX = constants(m=(256, 5), b=(1, 5))


def behind_conv(op: str, opset: int = 17, **attributes: Any) -> onnx.ModelProto:
    return proto([CONV, node(op, ["y"], ["z"], name="last", **attributes)], WEIGHT, opset)


ONNX_CASES: dict[str, onnx.ModelProto] = {
    "hard sigmoid, default slope": behind_conv("HardSigmoid"),
    "hard sigmoid, torch's slope": behind_conv("HardSigmoid", alpha=1 / 6, beta=0.5),
    "gelu by tanh": behind_conv("Gelu", 20, approximate="tanh"),
    "gelu": behind_conv("Gelu", 20),
    "hard swish": behind_conv("HardSwish"),
    "leaky relu": behind_conv("LeakyRelu", alpha=0.3),
    "softmax over channels": behind_conv("Softmax", 13, axis=1),
    "softmax before opset 13, last axis": behind_conv("Softmax", 11, axis=3),
    "average pool, ceil": behind_conv("AveragePool", 19, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "average pool, padded and counted": behind_conv(
        "AveragePool", kernel_shape=[3, 3], pads=[1, 0, 0, 1], count_include_pad=1
    ),
    "max pool, ceil": behind_conv("MaxPool", kernel_shape=[2, 2], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1),
    "max pool, ceil, padded behind": behind_conv(
        "MaxPool", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1], ceil_mode=1
    ),
    "average pool over every second entry, same padding": behind_conv(
        "AveragePool", 19, kernel_shape=[1, 1], strides=[2, 2], auto_pad="SAME_UPPER"
    ),
    "convolution over every second entry, same padding": proto(
        [node("Conv", ["x", "w"], ["z"], auto_pad="SAME_UPPER", strides=[2, 2])], WEIGHT
    ),
    "max pool, dilated": behind_conv("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]),
    "mean over channels": behind_conv("ReduceMean", axes=[1]),
    "mean over space": behind_conv("ReduceMean", axes=[-1, -2], keepdims=0),
    "same padding, lower": proto(
        [node("Conv", ["x", "k"], ["z"], auto_pad="SAME_LOWER", kernel_shape=[2, 2], strides=[3, 3])],
        constants(k=(6, 4, 2, 2)),
    ),
    "gemm with scales and a row as bias": proto(
        [FLAT, node("Gemm", ["f", "m", "b"], ["z"], alpha=0.5, beta=2.0)], MATRIX
    ),
    "matmul and a row": proto([FLAT, node("MatMul", ["f", "m"], ["p"]), node("Add", ["b", "p"], ["z"])], MATRIX),
    "matmul and a column": proto(
        [node("MatMul", ["x", "m"], ["p"]), node("Add", ["p", "b"], ["z"])], constants(m=(8, 8), b=(8, 1))
    ),
    "matmul read under two names": proto(
        [
            FLAT,
            node("MatMul", ["f", "m"], ["p"]),
            node("Identity", ["p"], ["p2"]),
            node("Add", ["p2", "b"], ["q"]),
            node("Add", ["q", "p"], ["z"]),
        ],
        MATRIX,
    ),
    "constant minus value": proto([CONV, node("Sub", ["one", "y"], ["z"])], {**WEIGHT, "one": np.float32(1)}),  # type: ignore[dict-item]
    "there and back permutation": proto(
        [
            node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
            node("Transpose", ["t"], ["u"], perm=[0, 3, 1, 2]),
            node("Conv", ["u", "w"], ["z"]),
        ],
        WEIGHT,
    ),
    "reshape by a fixed batch": proto(
        [CONV, node("Reshape", ["y", "r"], ["z"])], {**WEIGHT, "r": np.array([7, -1])}, batch=7
    ),
}


@pytest.mark.parametrize("name", ONNX_CASES)
def test_onnx_op_when_read_and_written_then_equals_onnxruntime(name: str) -> None:
    data = ONNX_CASES[name].SerializeToString()
    torch.manual_seed(0)
    x = torch.randn(7, *INPUT)
    wanted = outputs(data, x)
    module = read_network(data)
    assert relative(module(x), wanted) < TOLERANCE
    assert relative(outputs(write_float(fold_batchnorm(module)), x), wanted) < TOLERANCE


ONNX_REFUSALS: dict[str, onnx.ModelProto] = {
    "softmax before opset 13 over several axes": behind_conv("Softmax", 11),
    "average pool, dilated": behind_conv("AveragePool", 19, kernel_shape=[2, 2], dilations=[2, 2]),
    "average pool whose strides pass over entries, same padding": behind_conv(
        "AveragePool", 19, kernel_shape=[1, 1], strides=[4, 4], auto_pad="SAME_UPPER"
    ),
    "convolution whose strides pass over entries, same padding": proto(
        [node("Conv", ["x", "w"], ["z"], auto_pad="SAME_UPPER", strides=[4, 4])], WEIGHT
    ),
    "batch statistics": proto(
        [node("BatchNormalization", ["x", "s", "s", "s", "s"], ["z", "a", "b"], training_mode=1)], constants(s=(4,))
    ),
    "mean over the batch": behind_conv("ReduceMean", axes=[0, 2, 3]),
    "reshape of the batch into two": proto(
        [CONV, node("Reshape", ["y", "r"], ["z"])], {**WEIGHT, "r": np.array([2, 3, -1, 64])}, batch=4
    ),
    "dropout in training": proto(
        [CONV, node("Dropout", ["y", "r", "t"], ["z"])],
        {**WEIGHT, "r": np.float32(0.5), "t": np.bool_(True)},  # type: ignore[dict-item]
    ),
    "selu of another slope": behind_conv("Selu", alpha=1.2),
    "resize that keeps the aspect ratio": proto(
        [CONV, node("Resize", ["y", "", "", "s"], ["z"], axes=[2, 3], keep_aspect_ratio_policy="not_larger")],
        {**WEIGHT, "s": np.array([5, 9])},
        18,
    ),
    "resize with antialiasing": proto(
        [CONV, node("Resize", ["y", "", "f"], ["z"], antialias=1, mode="linear")],
        {**WEIGHT, "f": np.array([1, 1, 0.5, 0.5], dtype=np.float32)},
        18,
    ),
    "nearest resize, halfway between two entries but for rounding": proto(
        [CONV, node("Resize", ["y", "", "f"], ["z"])],
        {**WEIGHT, "f": np.array([1, 1, 1.6, 0.7], dtype=np.float32)},
    ),
    "an attribute nobody knows": behind_conv("Relu", leak=0.5),
    "largest few": proto([CONV, node("TopK", ["y", "k"], ["z", "i"], axis=1)], {**WEIGHT, "k": np.array([2])}),
    "gru that resets first": proto(
        [FLAT, node("Reshape", ["f", "s"], ["q"]), node("GRU", ["q", "w3", "r3"], ["z"], hidden_size=4)],
        {"s": np.array([64, -1, 4]), **constants(w3=(1, 12, 4), r3=(1, 12, 4))},
    ),
    "computed weight": proto([FLAT, node("Gemm", ["f", "f"], ["z"])], {}),
}


@pytest.mark.parametrize("name", ONNX_REFUSALS)
def test_onnx_op_when_it_means_something_else_then_refused(name: str) -> None:
    with pytest.raises(NetworkRefused) as refusal:
        read_network(ONNX_REFUSALS[name].SerializeToString())
    assert refusal.value.slug == "unsupported-operator"


class Behind(nn.Module):
    """A convolution, then any function."""

    def __init__(self, function: Callable[[Tensor], Tensor], **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, options.pop("kernel", 3), **options)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


PT2_CASES: dict[str, Callable[[], nn.Module]] = {
    "gelu by tanh": lambda: Behind(lambda x: F.gelu(x, approximate="tanh")),
    "silu": lambda: Behind(F.silu),
    "hard sigmoid": lambda: Behind(F.hardsigmoid),
    "upper clamp": lambda: Behind(lambda x: torch.clamp(x, max=0.5)),
    "lower clamp": lambda: Behind(lambda x: torch.clamp(x, min=0.1)),
    "same padding, odd kernel": lambda: Behind(F.relu, padding="same"),
    "same padding, even kernel": lambda: Behind(F.relu, kernel=4, padding="same"),
    "valid padding": lambda: Behind(F.relu, padding="valid"),
    "average pool, pads not counted": lambda: Behind(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "adaptive pool": lambda: Behind(lambda x: F.adaptive_avg_pool2d(x, (3, 1))),
    "padding with a value": lambda: Behind(lambda x: F.pad(x, (1, 0, 2, 1), value=-1.0)),
    "reflected padding": lambda: Behind(F.relu, padding=1, padding_mode="reflect"),
    "in place": lambda: Behind(lambda x: x.relu_().add_(x)),
    "view": lambda: Behind(lambda x: x.view(x.size(0), -1)),
}


@pytest.mark.parametrize("name", PT2_CASES)
def test_pt2_op_when_read_and_written_then_equals_torch(name: str) -> None:
    torch.manual_seed(0)
    net = PT2_CASES[name]().eval()
    module = read_network(exported(net, shape=INPUT))
    x = torch.randn(7, *INPUT)
    assert relative(module(x), net(x)) < TOLERANCE
    assert relative(outputs(write_float(fold_batchnorm(module)), x), net(x)) < TOLERANCE


PT2_REFUSALS: dict[str, Callable[[], nn.Module]] = {
    "divisor and ceil": lambda: Behind(lambda x: F.avg_pool2d(x, 2, ceil_mode=True, divisor_override=3)),
    "everything's mean": lambda: Behind(lambda x: x * x.mean()),
    "dropout in training": lambda: Behind(lambda x: torch.ops.aten.dropout.default(x, 0.5, True)),
    "softplus of another slope": lambda: Behind(lambda x: F.softplus(x, beta=2.0)),
    "sorted": lambda: Behind(lambda x: torch.topk(x, 2, 1).values),
    "mean over the batch": lambda: Behind(lambda x: x + x.mean(0, keepdim=True)),
}


@pytest.mark.parametrize("name", PT2_REFUSALS)
def test_pt2_op_when_it_means_something_else_then_refused(name: str) -> None:
    with pytest.raises(NetworkRefused) as refusal:
        read_network(exported(PT2_REFUSALS[name]().eval(), shape=INPUT))
    assert refusal.value.slug == "unsupported-operator"


def test_view_when_the_batch_is_exported_fixed_then_read_for_any_batch() -> None:
    net = Behind(lambda x: x.flatten(1)).eval()
    buffer = exported(Behind(lambda x: x.view(x.size(0), -1)).eval(), dynamic=False, shape=INPUT)
    assert read_network(buffer)(torch.randn(7, *INPUT)).shape == net(torch.randn(7, *INPUT)).shape
