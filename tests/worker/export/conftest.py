"""A small residual network trained on scikit-learn's digits, as the user would upload it."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from app.domain.budget import Budget
from app.domain.cost import count
from app.domain.device import DeviceProfile, MemoryPool, Throughput
from app.domain.graph import ModelGraph
from app.domain.space import Assignment
from tests.worker.export.written import written
from worker.data import Role, RoleData
from worker.export.checkpoint import write_checkpoint
from worker.export.export import ExportRequest
from worker.export.pruned import write_pruned
from worker.export.verify import Files, Subject
from worker.graph.write_onnx import write_float
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import Evaluator, EvaluatorOptions, open_evaluator, open_network

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


def host_device(name: str = "onnxruntime-cpu") -> DeviceProfile:
    """A device that takes every weight width from 2 to 8 bits and activations of 4 and 8."""
    pairs = tuple((w, a) for w in range(2, 9) for a in (4, 8))
    pool, rates = MemoryPool(None, 10.0), (Throughput(8, 8, 40.0), Throughput(32, 32, 20.0))
    return DeviceProfile(name, "cpu", {"default": pairs}, rates, pool, pool)


@dataclass(frozen=True)
class Lab:
    """A network ready to be compressed in any way, and the pictures to check it on."""

    evaluator: Evaluator
    data: dict[Role, RoleData]

    @property
    def graph(self) -> ModelGraph:
        return self.evaluator.graph

    def assignment(self, keep: float, weight_bits: list[int], act_bits: list[int]) -> Assignment:
        """Keep a fraction of each group; hand out bits in turn."""
        graph, turn, acts = self.graph, 0, {}
        for item in graph.activations:
            acts[item.id] = {"input": 8, "output": 32}.get(item.role, act_bits[turn % len(act_bits)])
            turn += item.role == "hidden"
        if act_bits == [32]:
            acts = dict.fromkeys(acts, 32)
        kept = {g.id: g.channels if g.frozen else max(1, round(keep * g.channels)) for g in graph.groups}
        bits = {layer.name: weight_bits[i % len(weight_bits)] for i, layer in enumerate(graph.layers)}
        return Assignment(kept, bits, acts)

    def compress(self, keep: float, weight_bits: list[int], act_bits: list[int]) -> CompressedNetwork:
        return self.evaluator.compress(self.assignment(keep, weight_bits, act_bits))

    def request(self, net: CompressedNetwork, device: DeviceProfile | None = None) -> ExportRequest:
        """An export under a budget that the network keeps with one percent to spare."""
        device = device or host_device()
        costs = count(self.graph, net.assignment, device)
        budget = Budget({m: 1.01 * costs.value(m) for m in ("bops", "weight_bytes", "peak_activation_bytes")})
        folded, pictures = self.evaluator.folded, self.data["evaluation"]
        pruned = self.evaluator.pruned(net.assignment)
        return ExportRequest(net, self.graph, folded, pruned, pictures, device, budget, {"seed": 3})

    def subject(self, net: CompressedNetwork) -> Subject:
        request = self.request(net)
        return Subject(net, request.graph, request.evaluation, request.device, request.budget, pruned=request.pruned)

    def files(self, net: CompressedNetwork) -> Files:
        float_onnx = write_float(self.evaluator.folded)
        pruned = write_pruned(net, self.evaluator.pruned(net.assignment))
        return Files(written(net), write_checkpoint(net, {}), float_onnx, pruned)


@pytest.fixture(scope="session")
def lab(digit_net: nn.Module, digits: Digits) -> Lab:
    """The trained digit network, read from its .pt2 file and opened for compression."""
    device = host_device()
    data: dict[Role, RoleData] = {
        "calibration": role(*digits.calibration),
        "evaluation": role(*digits.evaluation),
        "holdout": role(*digits.evaluation),
    }
    network = open_network(canonical(digit_net, (1, 8, 8)), "pt2")
    return Lab(open_evaluator(network, data, device, EvaluatorOptions(calibration=256)), data)


@pytest.fixture(scope="session")
def mixed(lab: Lab) -> CompressedNetwork:
    """2..8-bit weights, 4- and 8-bit activations, 7/8 of the channels."""
    return lab.compress(0.875, [8, 5, 6, 4, 3, 7, 8, 2], [8, 8, 4])


def role(images: NDArray[np.float32], labels: NDArray[np.int64]) -> RoleData:
    """Return pictures as the dataset reader hands them out."""
    x = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    return RoleData((x,), torch.from_numpy(labels))
