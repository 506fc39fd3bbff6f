"""Networks whose output is a picture, a volume or a signal: encoders with decoders, 1-D and 3-D convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.blocks import conv_bn_relu


class UNet(nn.Module):
    """Skips from encoder to decoder by concatenation, upsampling by interpolation and by transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv_bn_relu(3, 6), conv_bn_relu(6, 10), conv_bn_relu(10, 12)
        self.up = nn.ConvTranspose2d(12, 10, 2, 2)
        self.four, self.five = conv_bn_relu(20, 10), conv_bn_relu(16, 8)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.one(x)
        b = self.two(F.max_pool2d(a, 2))
        c = self.three(F.max_pool2d(b, 2))
        d = self.four(torch.cat([self.up(c), b], 1))
        e = F.interpolate(d, scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(self.five(torch.cat([e, a], 1)))


class Fcn(nn.Module):
    """Scores at two resolutions added up, brought back by transposed convolutions (one grouped, one padded)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv_bn_relu(3, 8, 3, 2), conv_bn_relu(8, 12, 3, 2)
        self.score1, self.score2 = nn.Conv2d(8, 6, 1), nn.Conv2d(12, 6, 1)
        self.up2 = nn.ConvTranspose2d(6, 6, 4, 2, 1, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.up1 = nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.one(x)
        b = self.two(a)
        return self.up1(torch.relu(self.norm(self.up2(self.score2(b)))) + self.score1(a))


class SuperResolution(nn.Module):
    """PReLU, a long skip, pixel shuffle, and the enlarged input added at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.prelu = nn.Conv2d(3, 12, 3, padding=1), nn.PReLU(12)
        self.a, self.b = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.slope, self.up = nn.PReLU(), nn.Conv2d(12, 16, 3, padding=1)
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.prelu(self.stem(x))
        y = y + self.b(self.slope(self.a(y)))
        y = self.last(F.leaky_relu(F.pixel_shuffle(self.up(y), 2), 0.2))
        return y + F.interpolate(x, scale_factor=2, mode="nearest")


class AudioCnn(nn.Module):
    """1-D convolutions: strided, grouped, dilated; BatchNorm, statistics pooled over time."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv1d(2, 16, 9, 4, 4), nn.BatchNorm1d(16), nn.ReLU())
        self.two = nn.Sequential(nn.Conv1d(16, 16, 3, padding=1, groups=4), nn.BatchNorm1d(16), nn.ReLU())
        self.three = nn.Sequential(nn.Conv1d(16, 24, 3, padding=2, dilation=2), nn.BatchNorm1d(24), nn.GELU())
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(self.two(self.one(x)), 2)
        x = self.three(F.pad(x, (1, 0)))
        return self.head(torch.cat([x.mean(-1), x.amax(-1)], 1))


class VolumeCnn(nn.Module):
    """3-D convolutions with a skip, average and maximum pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU())
        self.two = nn.Sequential(nn.Conv3d(8, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8))
        self.three = nn.Conv3d(8, 12, (1, 3, 3), padding=(0, 1, 1))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(self.one(x), 2)
        x = F.avg_pool3d(torch.relu(self.two(x) + x), 2)
        return self.head(F.adaptive_avg_pool3d(F.elu(self.three(x)), 1).flatten(1))


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm over channels last, a pointwise MLP, a scale per channel (Liu et al. 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth, self.norm = nn.Conv2d(channels, channels, 7, padding=3, groups=channels), nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Channels-last norms between channels-first convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.blocks = nn.Sequential(ConvNeXtBlock(12), ConvNeXtBlock(12))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x)).mean((-2, -1))))


class GroupNormNet(nn.Module):
    """GroupNorm and InstanceNorm; a hard tanh and a clamp with bounds of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.group = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(4, 12)
        self.b, self.instance = nn.Conv2d(12, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True)
        self.c, self.head = nn.Conv2d(8, 16, 3, 2, 1), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.group(self.a(x)))
        x = F.hardtanh(self.instance(self.b(x)), -2.0, 2.0)
        return self.head(self.c(x).clamp(-1.0, 3.0).mean((2, 3)))


class TwoInTwoOut(nn.Module):
    """A picture and a vector in, classes and a picture out."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.side = conv_bn_relu(3, 12), nn.Linear(6, 8)
        self.lift = nn.Linear(8, 12)
        self.mix, self.classes = conv_bn_relu(12, 10), nn.Linear(10 + 8, 7)
        self.mask = nn.Conv2d(10, 2, 1)

    def forward(self, image: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        side = torch.relu(self.side(vector))
        scaled = self.image(image) * torch.sigmoid(self.lift(side))[:, :, None, None]
        mixed = self.mix(scaled)
        classes = self.classes(torch.cat([mixed.mean((2, 3)), side], dim=-1))
        return classes, torch.sigmoid(self.mask(mixed))
