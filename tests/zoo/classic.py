"""Convolutional classifiers: plain, residual, dense, grouped, branched."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.blocks import SqueezeExcite, conv_bn, conv_bn_relu


class LeNet(nn.Module):
    """Two convolutions, a flatten with several positions per channel, three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 16, 24), nn.Linear(24, 20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = F.max_pool2d(torch.tanh(self.conv2(x)), (2, 2))
        x = x.view(x.size(0), -1)
        return self.fc3(torch.relu(self.fc2(torch.sigmoid(self.fc1(x)))))


class Vgg(nn.Module):
    """Convolutions with BatchNorm in a plain chain, linear layers with a BatchNorm of their own, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv_bn_relu(3, 8), *conv_bn_relu(8, 8), nn.MaxPool2d(2), *conv_bn_relu(8, 16), nn.MaxPool2d(2)
        )
        self.pool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(True), nn.Dropout(), nn.Linear(24, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


class BasicBlock(nn.Module):
    """Two convolutions and a skip (He et al. 2015)."""

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.a, self.b = conv_bn(cin, cout, 3, stride), conv_bn(cout, cout)
        self.skip = conv_bn(cin, cout, 1, stride) if cin != cout or stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))) + self.skip(x))


class ResNet(nn.Module):
    """Basic blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 8)
        self.blocks = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 16, 2), BasicBlock(16, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (perhaps grouped), 1x1 and a skip."""

    def __init__(self, cin: int, mid: int, cout: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.a, self.b = conv_bn_relu(cin, mid, 1), conv_bn_relu(mid, mid, 3, stride, groups)
        self.c = conv_bn(mid, cout, 1)
        self.skip = conv_bn(cin, cout, 1, stride) if cin != cout or stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.c(self.b(self.a(x)))
        out += self.skip(x)
        return torch.relu(out)


class ResNetBottleneck(nn.Module):
    """A 7x7 stem with padded max pooling, bottleneck blocks."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn_relu(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.Sequential(
            Bottleneck(8, 8, 16, 1, groups), Bottleneck(16, 8, 16, 1, groups), Bottleneck(16, 16, 24, 2, groups)
        )
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


class PreActBlock(nn.Module):
    """BatchNorm and ReLU in front of each convolution (He et al. 2016)."""

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.a = nn.BatchNorm2d(cin), nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn2, self.b = nn.BatchNorm2d(cout), nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(cin, cout, 1, stride, bias=False) if cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        pre = torch.relu(self.bn1(x))
        skip = x if self.skip is None else self.skip(pre)
        return self.b(torch.relu(self.bn2(self.a(pre)))) + skip


class PreActResNet(nn.Module):
    """Norms that can't be folded into what stands before them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(PreActBlock(8, 8), PreActBlock(8, 16, 2), PreActBlock(16, 16))
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.blocks(self.stem(x))))
        return self.head(F.avg_pool2d(x, x.shape[-1]).flatten(1))


class DenseLayer(nn.Module):
    """What it computes is put behind what it reads (Huang et al. 2017)."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.a = nn.BatchNorm2d(cin), nn.Conv2d(cin, 2 * growth, 1, bias=False)
        self.norm2, self.b = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        grown = self.b(torch.relu(self.norm2(self.a(torch.relu(self.norm1(x))))))
        return torch.cat([x, grown], 1)


class DenseNet(nn.Module):
    """Dense blocks and a transition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Sequential(DenseLayer(8, 4), DenseLayer(12, 4))
        self.transition = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.AvgPool2d(2))
        self.two = nn.Sequential(DenseLayer(8, 4), DenseLayer(12, 4))
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.transition(self.one(self.stem(x))))
        return self.head(torch.relu(self.norm(x)).mean((2, 3)))


class InceptionBlock(nn.Module):
    """Four branches side by side, one of them pooled, one factorised."""

    def __init__(self, cin: int) -> None:
        super().__init__()
        self.one, self.three = conv_bn_relu(cin, 6, 1), nn.Sequential(conv_bn_relu(cin, 4, 1), conv_bn_relu(4, 8))
        self.tall = nn.Conv2d(cin, 6, (3, 1), padding=(1, 0))
        self.wide = nn.Conv2d(6, 6, (1, 3), padding=(0, 1))
        self.pooled = conv_bn_relu(cin, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(F.avg_pool2d(x, 3, 1, 1))
        return torch.cat([self.one(x), self.three(x), torch.relu(self.wide(self.tall(x))), pooled], 1)


class Inception(nn.Module):
    """Branches of different depths joined by concatenation (Szegedy et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv_bn_relu(3, 8), InceptionBlock(8), InceptionBlock(24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.one(self.stem(x)), 3, 2, 1)
        return self.head(F.adaptive_max_pool2d(self.two(x), 1).flatten(1))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project, and a skip where shapes agree (Sandler et al. 2018)."""

    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        mid = cin * expand
        self.body = nn.Sequential(
            *conv_bn(cin, mid, 1),
            nn.ReLU6(),
            *conv_bn(mid, mid, 3, stride, mid),
            nn.ReLU6(),
            *conv_bn(mid, cout, 1),
        )
        self.has_skip = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.has_skip else self.body(x)


class MobileNetV2(nn.Module):
    """Inverted residuals with linear ends."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8, 3, 2), nn.ReLU6())
        self.blocks = nn.Sequential(
            InvertedResidual(8, 8, 1, 2), InvertedResidual(8, 12, 2, 3), InvertedResidual(12, 12, 1, 3)
        )
        self.last = nn.Sequential(*conv_bn(12, 24, 1), nn.ReLU6())
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(24, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.last(self.blocks(self.stem(x))), (1, 1)).flatten(1))


class GatedResidual(nn.Module):
    """Expand, depthwise, squeeze and excite, project (Howard et al. 2019)."""

    def __init__(self, cin: int, mid: int, cout: int, kernel: int) -> None:
        super().__init__()
        self.expand, self.depth = conv_bn(cin, mid, 1), conv_bn(mid, mid, kernel, 1, mid)
        self.gate, self.project = SqueezeExcite(mid, max(4, mid // 4)), conv_bn(mid, cout, 1)
        self.has_skip = cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.depth(F.hardswish(self.expand(x))))
        y = self.project(self.gate(y))
        return x + y if self.has_skip else y


class MobileNetV3(nn.Module):
    """Hard swish and squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8, 3, 2), nn.Hardswish())
        self.blocks = nn.Sequential(GatedResidual(8, 16, 8, 3), GatedResidual(8, 24, 12, 5))
        self.last = nn.Sequential(*conv_bn(12, 24, 1), nn.Hardswish())
        self.classifier = nn.Sequential(nn.Linear(24, 20), nn.Hardswish(), nn.Linear(20, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.last(self.blocks(self.stem(x))), 1)
        return self.classifier(torch.flatten(x, 1))


class ShuffleUnit(nn.Module):
    """Half of the channels pass, the others are computed, then both halves are shuffled (Ma et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(
            *conv_bn_relu(half, half, 1), *conv_bn(half, half, 3, 1, half), *conv_bn_relu(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        passed, computed = x.chunk(2, dim=1)
        x = torch.cat((passed, self.body(computed)), 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


class ShuffleDown(nn.Module):
    """Both branches are computed at half the resolution."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        half = cout // 2
        self.left = nn.Sequential(*conv_bn(cin, cin, 3, 2, cin), *conv_bn_relu(cin, half, 1))
        self.right = nn.Sequential(
            *conv_bn_relu(cin, half, 1), *conv_bn(half, half, 3, 2, half), *conv_bn_relu(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.channel_shuffle(torch.cat((self.left(x), self.right(x)), 1), 2)


class ShuffleNetV2(nn.Module):
    """Split, concatenate, shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 8)
        self.blocks = nn.Sequential(ShuffleDown(8, 16), ShuffleUnit(16), ShuffleUnit(16))
        self.last, self.head = conv_bn_relu(16, 20, 1), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean([2, 3]))


class ResNeXt(ResNetBottleneck):
    """Bottlenecks with grouped convolutions (Xie et al. 2017)."""

    def __init__(self) -> None:
        super().__init__(groups=4)
