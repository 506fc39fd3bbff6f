"""A small network trained on scikit-learn's digits, its dataset and a device, as files a user would upload."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from app.domain.device import DeviceProfile, MemoryPool, Throughput

TRAIN = 700
SPEC = {"layout": "NCHW", "scale": 1 / 16}
DEVICE = DeviceProfile(
    name="bench",
    unit="cpu",
    pairs={"default": tuple((w, a) for w in (8, 4, 2) for a in (8, 4))},
    compute=(Throughput(8, 8, 4.0, {"default": 0.5}),),
    activation_pool=MemoryPool(None, 2.0),
    weight_store=MemoryPool(None, 2.0),
)


Trained = TypeVar("Trained", bound=nn.Module)


class Net(nn.Module):
    """Two convolutions, a pool and a linear layer: about 91 % on digits after two seconds of training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
        self.last = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.second(F.max_pool2d(F.relu(self.first(x)), 2)))
        return self.last(torch.mean(y, dim=(2, 3)))


def exported(net: nn.Module) -> bytes:
    """Return a torch.export archive with a dynamic batch."""
    shapes = ({0: torch.export.Dim("batch")},)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(net.eval(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=shapes), buffer)
    return buffer.getvalue()


def trained(x: torch.Tensor, y: torch.Tensor) -> Net:
    """Train for a few seconds."""
    torch.manual_seed(0)
    return fitted(Net(), x, y, 15)


def fitted(net: Trained, x: torch.Tensor, y: torch.Tensor, epochs: int) -> Trained:
    """Train a network on classes (of rows, or of each pixel), seeded by the caller."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net


def write_files(folder: Path) -> Path:
    """Write net.pt2 and digits.npz (1,097 rows the network has not seen, integers 0..16); return the folder."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy(digits.images[:TRAIN, None].astype(np.float32) / 16)
    (folder / "net.pt2").write_bytes(exported(trained(x, torch.from_numpy(digits.target[:TRAIN]).long())))
    np.savez_compressed(folder / "digits.npz", x=digits.images[TRAIN:, None].astype(np.uint8), y=digits.target[TRAIN:])
    return folder
