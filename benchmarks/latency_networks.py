"""Networks made by code for the latency benchmark: families and sizes to calibrate on, and others to predict."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from examples.network import DigitNet
from worker.search.evaluate import Opened, open_network


def unit(ins: int, outs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    conv = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outs), nn.ReLU())


class Block(nn.Module):
    """Two convolutions, or 1x1, 3x3, 1x1 with `bottleneck` channels within, and a skip."""

    def __init__(self, ins: int, outs: int, stride: int, bottleneck: int = 0) -> None:
        super().__init__()
        if bottleneck:
            self.body = nn.Sequential(unit(ins, bottleneck, 1), unit(bottleneck, bottleneck, 3, stride))
            self.last = unit(bottleneck, outs, 1)[:2]
        else:
            self.body, self.last = unit(ins, outs, 3, stride), unit(outs, outs)[:2]
        self.skip = unit(ins, outs, 1, stride)[:2] if ins != outs or stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(self.body(x)) + self.skip(x))


def resnet(widths: Sequence[int], depth: int, bottleneck: int = 0) -> nn.Module:
    """Stages of `depth` blocks, halved in extent from the second on; channels within are width / `bottleneck`."""
    layers: list[nn.Module] = [unit(3, widths[0])]
    ins = widths[0]
    for stage, width in enumerate(widths):
        for index in range(depth):
            inner = width // bottleneck if bottleneck else 0
            layers.append(Block(ins, width, 2 if stage and not index else 1, inner))
            ins = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ins, 10))


def vgg(widths: Sequence[int], depth: int, hidden: int) -> nn.Module:
    """Stages of `depth` convolutions, each pooled by maximum; two linear layers."""
    layers: list[nn.Module] = []
    ins = 3
    for width in widths:
        for _ in range(depth):
            layers.append(unit(ins, width))
            ins = width
        layers.append(nn.MaxPool2d(2))
    columns = ins * (32 >> len(widths)) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(columns, hidden), nn.ReLU(), nn.Linear(hidden, 10))


class Inverted(nn.Module):
    """Expand, depthwise, project, with a skip where shapes allow (MobileNetV2)."""

    def __init__(self, ins: int, outs: int, stride: int, factor: int) -> None:
        super().__init__()
        inner = ins * factor
        self.body = nn.Sequential(unit(ins, inner, 1), unit(inner, inner, 3, stride, inner), unit(inner, outs, 1)[:2])
        self.skips = stride == 1 and ins == outs

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = self.body(x)
        return x + moved if self.skips else moved


def mobilenet_v2(widths: Sequence[int], depth: int, factor: int) -> nn.Module:
    """A stem, stages of inverted residuals, a pointwise convolution, a linear layer."""
    layers: list[nn.Module] = [unit(3, widths[0])]
    ins = widths[0]
    for width in widths:
        for index in range(depth):
            layers.append(Inverted(ins, width, 1 if index else 2, factor))
            ins = width
    return nn.Sequential(*layers, unit(ins, 4 * ins, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * ins, 10))


def mobilenet_v1(widths: Sequence[int]) -> nn.Module:
    """Depthwise and pointwise convolutions in a plain chain."""
    layers: list[nn.Module] = [unit(3, widths[0])]
    for index, (ins, outs) in enumerate(itertools.pairwise(widths)):
        layers += [unit(ins, ins, 3, 1 + index % 2, ins), unit(ins, outs, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


class Branches(nn.Module):
    """1x1, 1x1-3x3, 1x1-5x5 side by side, concatenated."""

    def __init__(self, ins: int, width: int) -> None:
        super().__init__()
        self.a, self.b = unit(ins, width, 1), nn.Sequential(unit(ins, width // 2, 1), unit(width // 2, width))
        self.c = nn.Sequential(unit(ins, width // 4, 1), unit(width // 4, width // 2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x), self.c(x)], 1)


def inception(widths: Sequence[int]) -> nn.Module:
    """A stem, blocks of branches, pooled by maximum in between."""
    layers: list[nn.Module] = [unit(3, 32)]
    ins = 32
    for width in widths:
        layers += [Branches(ins, width), nn.MaxPool2d(2)]
        ins = 2 * width + width // 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ins, 10))


class Grown(nn.Module):
    """A convolution whose result is put beside what it read (DenseNet, BatchNorm behind the convolution)."""

    def __init__(self, ins: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(unit(ins, 4 * growth, 1), unit(4 * growth, growth))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet(growth: int, depths: Sequence[int]) -> nn.Module:
    """Dense blocks with halving transitions."""
    layers: list[nn.Module] = [unit(3, 2 * growth)]
    ins = 2 * growth
    for depth in depths:
        for _ in range(depth):
            layers.append(Grown(ins, growth))
            ins += growth
        layers += [unit(ins, ins // 2, 1), nn.MaxPool2d(2)]
        ins //= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ins, 10))


class Fire(nn.Module):
    """Squeeze, then expand by 1x1 and 3x3 side by side (SqueezeNet)."""

    def __init__(self, ins: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = unit(ins, squeezed, 1)
        self.one, self.three = unit(squeezed, expanded, 1), unit(squeezed, expanded)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.squeeze(x)
        return torch.cat([self.one(squeezed), self.three(squeezed)], 1)


def squeezenet(widths: Sequence[int]) -> nn.Module:
    """A stem, fire modules of `width` squeezed channels, pooled by maximum in between."""
    layers: list[nn.Module] = [unit(3, 48)]
    ins = 48
    for width in widths:
        layers += [Fire(ins, width, 3 * width), Fire(6 * width, width, 3 * width), nn.MaxPool2d(2)]
        ins = 6 * width
    return nn.Sequential(*layers, unit(ins, 2 * ins, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * ins, 10))


def strided(widths: Sequence[int], kernel: int) -> nn.Module:
    """Strided convolutions in a plain chain, no pooling."""
    layers = [unit(ins, outs, kernel, 2) for ins, outs in itertools.pairwise((3, *widths))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def lenet(widths: Sequence[int], hidden: Sequence[int]) -> nn.Module:
    """Two 5x5 convolutions on 28x28 digits, linear layers."""
    a, b = widths
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, a, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(a, b, 5), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Sequential(nn.Linear(16 * b, hidden[0]), nn.ReLU(), nn.Linear(hidden[0], hidden[1]), nn.ReLU()),
        nn.Linear(hidden[1], 10),
    )


def digits(width: int) -> nn.Module:
    """Two convolutions on 8x8 digits: so small that calls cost more than products."""
    return nn.Sequential(
        unit(1, width), unit(width, width, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    )


@dataclass(frozen=True)
class Family:
    """A network and the shape of its input."""

    network: nn.Module
    shape: tuple[int, ...] = (3, 32, 32)


@cache
def calibration() -> dict[str, Family]:
    """Return the networks a table is fitted on."""
    torch.manual_seed(0)
    return {
        "resnet8": Family(resnet((16, 32, 64), 1)),
        "vgg7": Family(vgg((32, 64, 96), 2, 128)),
        "lenet5": Family(lenet((6, 16), (120, 84)), (1, 28, 28)),
        "mobilenet_v2_a": Family(mobilenet_v2((16, 32, 48), 2, 4)),
        "densenet": Family(densenet(12, (3, 3))),
    }


@cache
def development() -> dict[str, Family]:
    """Return the networks that the table's features were chosen on: not fitted, yet not unseen by its author."""
    torch.manual_seed(1)
    return {
        "resnet20": Family(resnet((16, 32, 64), 3)),
        "resnet14_wide": Family(resnet((40, 64, 112), 2)),
        "resnet_bottleneck": Family(resnet((64, 128, 192), 2, 4)),
        "vgg10": Family(vgg((24, 48, 72), 3, 96)),
        "mobilenet_v2_b": Family(mobilenet_v2((24, 40, 64), 3, 3)),
        "mobilenet_v1": Family(mobilenet_v1((32, 48, 64, 96, 128, 160))),
        "inception": Family(inception((48, 64, 96))),
        "lenet_wide": Family(lenet((20, 50), (500, 100)), (1, 28, 28)),
        "digits": Family(digits(8), (1, 8, 8)),
        "digits_wide": Family(digits(24), (1, 8, 8)),
    }


@cache
def million() -> dict[str, Family]:
    """Return a residual network of a million parameters, whose exports are timed."""
    torch.manual_seed(4)
    return {"resnet20_wide": Family(resnet((32, 64, 128), 3))}


@cache
def unseen() -> dict[str, Family]:
    """Return networks of other families and sizes, first measured after the table's features were fixed."""
    torch.manual_seed(2)
    return {
        "resnet32_thin": Family(resnet((12, 28, 52), 5)),
        "resnet10_wide": Family(resnet((48, 96, 144), 1)),
        "resnet26_bottleneck": Family(resnet((48, 96, 160), 2, 2)),
        "vgg9_wide": Family(vgg((48, 80, 128), 2, 200)),
        "mobilenet_v2_c": Family(mobilenet_v2((16, 24, 40, 72), 2, 6)),
        "mobilenet_v1_b": Family(mobilenet_v1((24, 40, 80, 112, 144))),
        "inception_b": Family(inception((40, 56, 88, 112))),
        "squeezenet": Family(squeezenet((12, 20, 28))),
        "densenet_b": Family(densenet(16, (4, 4, 4))),
        "strided5": Family(strided((32, 64, 96), 5)),
        "lenet_thin": Family(lenet((8, 24), (80, 40)), (1, 28, 28)),
        "digits_tiny": Family(digits(6), (1, 8, 8)),
        "digits_resnet": Family(DigitNet(12), (1, 8, 8)),
    }


@cache
def odd() -> dict[str, Family]:
    """Return networks whose channels divide by nothing."""
    torch.manual_seed(3)
    return {
        "resnet8_odd": Family(resnet((17, 33, 63), 1)),
        "vgg_odd": Family(vgg((31, 47, 65), 1, 101)),
        "mobilenet_v2_odd": Family(mobilenet_v2((15, 23, 37), 1, 3)),
        "inception_odd": Family(inception((45, 61))),
        "lenet_odd": Family(lenet((7, 17), (101, 83)), (1, 28, 28)),
    }


@cache
def opened(name: str) -> Opened:
    """Return a network, read as users' files are."""
    family = {**calibration(), **development(), **unseen(), **odd(), **million()}[name]
    example = torch.randn(2, *family.shape)
    program = torch.export.export(family.network.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    file = io.BytesIO()
    torch.export.save(program, file)
    return open_network(file.getvalue())
