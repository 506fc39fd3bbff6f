"""A small residual network trained on scikit-learn's digits, as the user would upload it."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn import functional as F

from app.domain.graph import ChannelGroup, ModelGraph
from app.domain.space import Assignment
from worker.graph.groups import channel_plan
from worker.graph.picture import draw
from worker.graph.read import read_network
from worker.graph.rewrite import fold_batchnorm
from worker.graph.slicing import Slicer
from worker.quant.grids import ActivationGrid, activation_grid, round_weight, weight_scales
from worker.quant.network import CompressedNetwork, QuantizedLayer, run

TRAIN = 697


class Block(nn.Module):
    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)
        self.down = nn.Conv2d(ins, outs, 1, stride, bias=False) if stride != 1 else None
        self.bn_down = nn.BatchNorm2d(outs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.down is None else self.bn_down(self.down(x))))


class DigitNet(nn.Module):
    """Residual adds, a stride, a max pool, a depthwise layer with ReLU6, an average pool and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.block1, self.block2 = Block(16, 16, 1), Block(16, 32, 2)
        self.depth = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
        self.bn_depth = nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block2(self.block1(F.max_pool2d(F.relu(self.bn(self.stem(x))), 2)))
        y = F.relu6(self.bn_depth(self.depth(y)))
        return self.fc(torch.mean(y, dim=(2, 3)))


@dataclass(frozen=True)
class Digits:
    """Pictures as float32 (N, 1, 8, 8) in [0, 1] and their labels; the first TRAIN rows trained the network."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def calibration(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return self.images[:256], self.labels[:256]

    @property
    def evaluation(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return self.images[TRAIN:], self.labels[TRAIN:]


@pytest.fixture(scope="session")
def digits() -> Digits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = (bunch.images[order, None] / 16).astype(np.float32)
    return Digits(images, bunch.target[order].astype(np.int64))


@pytest.fixture(scope="session")
def digit_net(digits: Digits) -> nn.Module:
    """The network after a few seconds of training: about 97 % on the 1,100 pictures it has not seen."""
    torch.manual_seed(0)
    net = DigitNet()
    x, y = torch.from_numpy(digits.images[:TRAIN]), torch.from_numpy(digits.labels[:TRAIN])
    epochs, batch = 14, 64
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs * -(-TRAIN // batch))
    for _ in range(epochs):
        for rows in torch.randperm(TRAIN).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def canonical(net: nn.Module, image: tuple[int, ...]) -> bytes:
    """Return the network as a dynamic-batch .pt2 file, as a user would export it."""
    example = torch.zeros(2, *image)
    program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def compress(
    module: fx.GraphModule, images: NDArray[np.float32], keep: float, weight_bits: list[int], act_bits: list[int]
) -> tuple[CompressedNetwork, ModelGraph]:
    """Prune by weight norm and quantize with bits taken in turn: no repair, just something to export."""
    plan = channel_plan(module, images.shape[1:])
    graph = draw(module, plan, images.shape[1:])
    kept = {
        g.id: _strongest(module, g, g.channels if g.frozen else max(2, round(keep * g.channels))) for g in plan.groups
    }
    sliced = Slicer(module, plan).sliced(kept)
    bits = {layer.name: weight_bits[i % len(weight_bits)] for i, layer in enumerate(graph.layers)}
    layers = {layer.name: _quantized(sliced, layer.name, bits[layer.name]) for layer in graph.layers}
    acts, turn = {}, 0
    for item in graph.activations:
        acts[item.id] = {"input": 8, "output": 32}.get(item.role, act_bits[turn % len(act_bits)])
        turn += item.role == "hidden"
    grids = _grids(sliced, images, graph, acts)
    layers = {
        layer.name: _with_integer_bias(sliced, layers[layer.name], grids.get(layer.input)) for layer in graph.layers
    }
    assignment = Assignment({g: len(k) for g, k in kept.items()}, bits, acts)
    return CompressedNetwork(sliced, layers, grids, tuple(images.shape[1:]), assignment, kept), graph


def _strongest(module: fx.GraphModule, group: ChannelGroup, count: int) -> tuple[int, ...]:
    norms = torch.zeros(group.channels)
    for name in group.producers:
        weight = module.get_submodule(name).weight
        if len(weight) == group.channels:
            norms += weight.detach().flatten(1).norm(dim=1)
    return tuple(sorted(norms.argsort(descending=True)[:count].tolist()))


def _quantized(module: fx.GraphModule, name: str, bits: int) -> QuantizedLayer:
    leaf = module.get_submodule(name)
    weight, bias = leaf.weight.detach(), leaf.bias.detach().numpy()
    if bits >= 32:
        return QuantizedLayer(name, bits, bias, weight_float=weight.numpy())
    scale = weight_scales(weight, bits)
    ints = round_weight(weight, scale, bits)
    leaf.weight = nn.Parameter(ints * scale.reshape(-1, *[1] * (weight.dim() - 1)), requires_grad=False)
    return QuantizedLayer(name, bits, bias, ints.numpy().astype(np.int8), scale.numpy())


def _with_integer_bias(module: fx.GraphModule, layer: QuantizedLayer, grid: ActivationGrid | None) -> QuantizedLayer:
    """Round the bias to int32 at scale s_x * s_w, as every integer kernel does."""
    if grid is None or layer.weight_scale is None:
        return layer
    scale = np.float32(grid.scale) * layer.weight_scale
    bias = np.rint(layer.bias / scale).astype(np.float32) * scale
    module.get_submodule(layer.name).bias = nn.Parameter(torch.from_numpy(bias), requires_grad=False)
    return dataclasses.replace(layer, bias=bias)


def _grids(
    module: fx.GraphModule, images: NDArray[np.float32], graph: ModelGraph, bits: dict[str, int]
) -> dict[str, ActivationGrid]:
    grids: dict[str, ActivationGrid] = {}
    wanted = {item.id: item for item in graph.activations if bits[item.id] < 32}

    def after(name: str, value: torch.Tensor) -> torch.Tensor:
        if name not in wanted:
            return value
        samples = value.flatten()[:: max(1, value.numel() // 20_000)]
        grids[name] = activation_grid(samples, bits[name], wanted[name].unsigned)
        return grids[name].fake_quantize_(value)

    run(module, torch.from_numpy(images), after=after)
    return grids


@pytest.fixture(scope="session")
def folded(digit_net: nn.Module) -> fx.GraphModule:
    """The trained network as the reader and the BatchNorm folding leave it."""
    return fold_batchnorm(read_network(canonical(digit_net, (1, 8, 8)), "pt2"))


@pytest.fixture(scope="session")
def mixed(folded: fx.GraphModule, digits: Digits) -> tuple[CompressedNetwork, ModelGraph]:
    """A network with 2..8-bit weights and 4- and 8-bit activations at 7/8 of the channels."""
    return compress(folded, digits.calibration[0], 0.875, [8, 5, 6, 4, 3, 7, 8, 8], [8, 8, 4])
