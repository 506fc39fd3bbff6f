"""Small networks made by code, one for each way channels can be tied."""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHAPE = (3, 12, 12)


def conv_bn(cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)
    )


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv_bn(3, 8), conv_bn(8, 12)
        self.hidden, self.head = nn.Linear(12 * 9, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.one(x)), 2)
        x = F.max_pool2d(F.relu(self.two(x)), 2)
        return self.head(F.relu(self.hidden(torch.flatten(x, 1))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv_bn(3, 8), conv_bn(8, 6), conv_bn(6, 8)
        self.down, self.c = conv_bn(8, 12, 1, 2), conv_bn(8, 12, 3, 2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.b(F.relu(self.a(x))) + x)
        x = F.relu(self.c(x) + self.down(x))
        return self.head(x.mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth, self.project = conv_bn(3, 12, 1), conv_bn(12, 12, groups=12), conv_bn(12, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.depth(F.relu6(self.expand(x))))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.project(x), 1), 1))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv_bn(3, 8), conv_bn(8, 4, 1), conv_bn(8, 6)
        self.mix, self.head = conv_bn(18, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([x, F.relu(self.a(x)), self.b(x)], 1)
        return self.head(F.avg_pool2d(F.relu(self.mix(x)), 12).flatten(1))


NETS: dict[str, type[nn.Module]] = {"plain": Plain, "residual": Residual, "depthwise": Depthwise, "concat": Concat}


def make(name: str, seed: int = 0) -> nn.Module:
    """Return a network with random weights and random BatchNorm statistics, in eval mode."""
    torch.manual_seed(seed)
    net = NETS[name]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def exported(net: nn.Module, dynamic: bool = True, shape: tuple[int, ...] = SHAPE) -> bytes:
    """Return a torch.export archive of a network."""
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(net, (torch.randn(2, *shape),), dynamic_shapes=shapes), buffer)
    return buffer.getvalue()


class Pictures:
    """Random inputs of one shape, laid out as the zoo's networks have them."""

    def __init__(self, shape: tuple[int, ...] = SHAPE) -> None:
        self._shape = shape

    def inputs(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Return a batch."""
        return (torch.randn(batch, *self._shape, generator=torch.Generator().manual_seed(seed)),)
