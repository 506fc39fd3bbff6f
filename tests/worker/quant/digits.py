"""A small residual network trained on scikit-learn's digits, its data by role, and evaluators over them."""

from __future__ import annotations

import functools
import io

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from app.domain.device import DeviceProfile, MemoryPool, Throughput
from app.domain.graph import ModelGraph, Port
from app.domain.space import Assignment
from worker.data import Dataset, DatasetSpec, Role, RoleData, role_data
from worker.search.evaluate import Evaluator, EvaluatorOptions, Opened, open_evaluator, open_network

TRAIN, CALIBRATION, EVALUATION = 797, 256, 400
PORTS = (Port("x", (1, 8, 8)),)
KINDS = ("conv", "depthwise", "linear")


class Digits(nn.Module):
    """A stem, a residual block, a depthwise layer with ReLU6 and a strided layer: about 6,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn_stem = nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.left, self.bn_left = nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.right, self.bn_right = nn.Conv2d(16, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.deep, self.bn_deep = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.last, self.bn_last = nn.Conv2d(12, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_stem(self.stem(x)))
        x = F.relu(x + self.bn_right(self.right(F.relu(self.bn_left(self.left(x))))))
        x = F.relu6(self.bn_deep(self.deep(x)))
        return self.head(F.relu(self.bn_last(self.last(x))).mean((2, 3)))  # type: ignore[no-any-return]


def device(per_channel: tuple[str, ...] = KINDS) -> DeviceProfile:
    return DeviceProfile(
        name="bench-npu",
        unit="npu",
        pairs={"default": tuple((w, a) for w in (2, 3, 4, 8) for a in (2, 3, 4, 8))},
        compute=(Throughput(8, 8, 4.0),),
        activation_pool=MemoryPool(None, 2.0),
        weight_store=MemoryPool(None, 1.0),
        per_channel_weights=per_channel,
    )


def exported(net: nn.Module, shape: tuple[int, ...]) -> bytes:
    """Return the network as a .pt2 file with a dynamic batch."""
    dims = ({0: torch.export.Dim("batch")},)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(net.eval(), (torch.zeros(2, *shape),), dynamic_shapes=dims), buffer)
    return buffer.getvalue()


@functools.cache
def dataset() -> Dataset:
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = bunch.images[order].astype(np.uint8)
    return Dataset({"x": images}, bunch.target[order].astype(np.int64), DatasetSpec("NHW", 1 / 16, (0.3,), (0.38,)))


@functools.cache
def data() -> dict[Role, RoleData]:
    """Calibration lies in the training rows; evaluation and hold-out are unseen."""
    edges = np.arange(len(dataset()))
    return {
        "calibration": role_data(dataset(), PORTS, edges[:CALIBRATION]),
        "evaluation": role_data(dataset(), PORTS, edges[TRAIN : TRAIN + EVALUATION]),
        "holdout": role_data(dataset(), PORTS, edges[TRAIN + EVALUATION :]),
    }


@functools.cache
@torch.enable_grad()  # the first test to ask for it may stand in a `no_grad` block
def trained() -> Opened:
    """Train for a few seconds (about 97 % on unseen pictures), export, read back."""
    torch.manual_seed(0)
    net, train = Digits(), role_data(dataset(), PORTS, np.arange(TRAIN))
    assert train.labels is not None
    epochs, batch = 12, 64
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-2, epochs * -(-TRAIN // batch))
    for _ in range(epochs):
        for rows in torch.randperm(TRAIN).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(net(train.inputs[0][rows]), train.labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return open_network(exported(net, (1, 8, 8)), "pt2")


@functools.cache
def evaluator(per_channel: tuple[str, ...] = KINDS) -> Evaluator:
    return fresh(per_channel)


def fresh(per_channel: tuple[str, ...] = KINDS) -> Evaluator:
    """Return an evaluator that shares no cache with any other."""
    return open_evaluator(trained(), data(), device(per_channel), EvaluatorOptions(screen=128))


def random_evaluator(net: nn.Module, shape: tuple[int, ...], classes: int | None = 5) -> Evaluator:
    """Return an evaluator of an untrained network on normal noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(192, *shape, generator=generator)
    labels = None if classes is None else torch.randint(0, classes, (192,), generator=generator)
    roles: dict[Role, RoleData] = {role: RoleData((x,), labels) for role in ("calibration", "evaluation", "holdout")}
    return open_evaluator(open_network(exported(net, shape), "pt2"), roles, device())


def assignment(graph: ModelGraph, keep: float, weight_bits: int, activation_bits: int) -> Assignment:
    """Return the same keep ratio and bits everywhere; the input at 8 bits (32 with float activations)."""
    fixed = {"input": min(32, max(8, activation_bits)), "output": 32}
    return Assignment(
        {g.id: g.channels if g.frozen else max(1, round(keep * g.channels)) for g in graph.groups},
        {layer.name: weight_bits for layer in graph.layers},
        {item.id: fixed.get(item.role, activation_bits) for item in graph.activations},
    )
