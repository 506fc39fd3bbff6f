"""The demo's network and its training: a small residual CNN on scikit-learn's 8x8 digits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

Array = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is projected where the shape changes."""

    def __init__(self, ins: int, outs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)
        projected = stride != 1 or ins != outs
        self.shortcut = (
            nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs)) if projected else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(F(x) + shortcut(x)), N x outs x H/stride x W/stride."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class DigitNet(nn.Module):
    """Stem, three residual blocks, global average pool, linear: N x 1 x 8 x 8 in [0, 1] to N x 10 logits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.block1 = Block(width, width)
        self.block2 = Block(width, 2 * width, 2)
        self.block3 = Block(2 * width, 4 * width, 2)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        x = F.relu(self.bn(self.stem(x)))
        x = self.block3(self.block2(self.block1(x)))
        return self.head(x.mean((2, 3)))


def augment(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return pictures shifted by at most one pixel, with a little noise."""
    dy, dx = (int(torch.randint(-1, 2, (), generator=rng)) for _ in range(2))
    moved = torch.roll(F.pad(x, (1, 1, 1, 1)), (dy, dx), (2, 3))[:, :, 1:-1, 1:-1]
    return moved + 0.03 * torch.randn(moved.shape, generator=rng)


def train(x: Array, y: Labels, epochs: int = 24, seed: int = 0) -> DigitNet:
    """Return a network trained on uint8 pictures (N x 1 x 8 x 8, 0..255) and labels."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    network, batch = DigitNet(), 50
    inputs, labels = torch.from_numpy(x).float() / 255, torch.from_numpy(y)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=5e-3)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=rng)
        for start in range(0, len(x) - batch + 1, batch):
            rows = order[start : start + batch]
            loss = F.cross_entropy(network(augment(inputs[rows], rng)), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def predict(network: nn.Module, x: Array) -> Labels:
    """Return the top-1 classes of uint8 pictures."""
    return network(torch.from_numpy(x).float() / 255).argmax(1).numpy()
