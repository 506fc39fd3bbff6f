"""LeNet-5 as the papers have it (32C5-MP2-64C5-MP2-512FC), trained here on MNIST, and its pictures by role."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.domain.device import DeviceProfile, MemoryPool, Throughput
from benchmarks.cells import RESULTS
from benchmarks.networks import arrays_of
from worker.data import Dataset, DatasetSpec, Role, RoleData, role_data
from worker.methods.training import shifted
from worker.search.evaluate import Opened, open_network

EPOCHS, BATCH, RATE, SHIFT = 12, 64, 2e-3, 2
SPEC = DatasetSpec("NHW", 1 / 255, (0.1307,), (0.3081,))
DEVICE = DeviceProfile(
    name="papers",
    unit="npu",
    pairs={"default": tuple((w, a) for w in (2, 3, 4, 6, 8) for a in (2, 3, 4, 6, 8))},
    compute=(Throughput(8, 8, 20.0),),
    activation_pool=MemoryPool(None, 10.0),
    weight_store=MemoryPool(None, 10.0),
)


class LeNet(nn.Module):
    """Two convolutions with pooling, 512 hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 5), nn.Conv2d(32, 64, 5)
        self.hidden, self.head = nn.Linear(1024, 512), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores [rows, 10] of pictures [rows, 1, 28, 28]."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        scores: Tensor = self.head(F.relu(self.hidden(x.flatten(1))))
        return scores


@functools.cache
def data() -> dict[Role, RoleData]:
    """Return training pictures as calibration rows, validation pictures for every decision, test pictures as
    hold-out."""
    loaded = arrays_of("mnist", ("train", "val", "test"))
    found: dict[Role, RoleData] = {}
    names: tuple[tuple[Role, str], ...] = (("calibration", "train"), ("evaluation", "val"), ("holdout", "test"))
    for role, name in names:
        dataset = Dataset({"x": loaded[f"x_{name}"]}, loaded[f"y_{name}"].astype(np.int64), SPEC)
        found[role] = role_data(dataset, opened().graph.inputs)
    return found


def case() -> tuple[Opened, dict[Role, RoleData], DeviceProfile]:
    """Return the float network, its pictures by role and the device."""
    return opened(), data(), DEVICE


@functools.cache
def opened() -> Opened:
    """Return the float network, trained once and kept beside the results."""
    file = RESULTS / "papers-lenet.pt2"
    if not file.exists():
        RESULTS.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_exported(trained(LeNet(), EPOCHS)))
    return open_network(file.read_bytes(), "pt2")


def trained(net: nn.Module, epochs: int, rate: float = RATE) -> nn.Module:
    """Train a float network on the labels of all training pictures, shifted a little."""
    loaded = arrays_of("mnist", ("train",))
    x = torch.from_numpy(((loaded["x_train"] / 255 - 0.1307) / 0.3081).astype(np.float32))[:, None]
    y = torch.from_numpy(loaded["y_train"].astype(np.int64))
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(x) // BATCH))
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
            (pictures,) = shifted([x[rows]], SHIFT, mirror=False)
            optimizer.zero_grad()
            F.cross_entropy(net(pictures), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def _exported(net: nn.Module) -> bytes:
    buffer: Any = io.BytesIO()
    dims = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net, (torch.zeros(2, 1, 28, 28),), dynamic_shapes=dims), buffer)
    return bytes(buffer.getvalue())
