"""Small valid networks, as both of torch's ONNX exporters and torch.export write them: where mutations start."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.worker.graph.nets import NETS, SHAPE, exported, make

OPSET = {False: 17, True: 18}


class Attention(nn.Module):
    """A transformer's encoder layer on twelve tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class Recurrent(nn.Module):
    """An LSTM on twelve steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(8, 10, batch_first=True), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Mixed(nn.Module):
    """Grouped and transposed convolutions, a gate, padding, resizing and a shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1, groups=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.gate, self.up = nn.Linear(8, 8), nn.ConvTranspose2d(8, 8, 2, 2)
        self.norm, self.head = nn.GroupNorm(2, 8), nn.Conv2d(2, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.b(F.hardswish(self.a(x))))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        y = self.norm(self.up(F.leaky_relu(y)))
        return self.head(F.pixel_shuffle(F.pad(F.interpolate(y, scale_factor=2.0), (1, 1, 0, 0)), 2)).mean((2, 3))


EXTRA: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "attention": (Attention, (12, 16)),
    "recurrent": (Recurrent, (12, 8)),
    "mixed": (Mixed, SHAPE),
}
NAMES = (*NETS, *EXTRA)


def network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a seed network in eval mode and the shape of one input."""
    if name in NETS:
        return make(name), SHAPE
    kind, shape = EXTRA[name]
    torch.manual_seed(0)
    return kind().eval(), shape


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' advice off the screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def onnx_of(name: str, dynamo: bool) -> bytes:
    """Return a seed as an ONNX file."""
    net, shape = network(name)
    buffer, x = io.BytesIO(), torch.randn(2, *shape)
    if dynamo:
        batch = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(
            net, (x,), dynamo=True, dynamic_shapes=batch, opset_version=OPSET[True], external_data=False, verbose=False
        )
        assert program is not None
        program.save(buffer)
    else:
        axes = {"x": {0: "n"}}
        torch.onnx.export(
            net, (x,), buffer, dynamo=False, input_names=["x"], dynamic_axes=axes, opset_version=OPSET[False]
        )
    return buffer.getvalue()


@cache
def seeds(reader: str) -> dict[str, bytes]:
    """Return the seeds of a reader ("onnx" or "pt2") by name."""
    with quiet():
        if reader == "onnx":
            return {f"{name}-{kind}": onnx_of(name, kind == "dynamo") for name in NAMES for kind in ("dynamo", "old")}
        made = {}
        for name in NAMES:
            net, shape = network(name)
            made[f"{name}-open"] = exported(net, True, shape)
            made[f"{name}-fixed"] = exported(net, False, shape)
        return made
