"""Small networks made by code, of every family users bring: what tightfit must read, cut, quantize and write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.zoo import classic, dense, sequences
from tests.zoo.blocks import randomise

Shape = tuple[int, ...]
PICTURE: tuple[Shape, ...] = ((3, 16, 16),)


@dataclass(frozen=True)
class Entry:
    """One network: how to make it, the shapes of its inputs without the batch, how many ids an integer input takes."""

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[Shape, ...] = PICTURE
    vocabulary: int | None = None
    is_cnn: bool = True

    def network(self, seed: int = 0) -> nn.Module:
        """Return the network with random weights and statistics, in eval mode."""
        torch.manual_seed(seed)
        return randomise(self.make())

    def inputs(self, batch: int, seed: int = 1) -> tuple[Tensor, ...]:
        """Return random inputs."""
        generator = torch.Generator().manual_seed(seed)
        if self.vocabulary is not None:
            return tuple(torch.randint(self.vocabulary, (batch, *shape), generator=generator) for shape in self.shapes)
        return tuple(torch.randn(batch, *shape, generator=generator) for shape in self.shapes)


_ENTRIES = (
    Entry("lenet", classic.LeNet, ((1, 24, 24),)),
    Entry("vgg", classic.Vgg),
    Entry("resnet", classic.ResNet),
    Entry("resnet_bottleneck", classic.ResNetBottleneck, ((3, 32, 32),)),
    Entry("preact_resnet", classic.PreActResNet),
    Entry("mobilenet_v2", classic.MobileNetV2),
    Entry("mobilenet_v3", classic.MobileNetV3),
    Entry("shufflenet_v2", classic.ShuffleNetV2),
    Entry("densenet", classic.DenseNet),
    Entry("inception", classic.Inception),
    Entry("resnext", classic.ResNeXt, ((3, 32, 32),)),
    Entry("unet", dense.UNet),
    Entry("fcn", dense.Fcn),
    Entry("super_resolution", dense.SuperResolution),
    Entry("audio_cnn", dense.AudioCnn, ((2, 128),)),
    Entry("volume_cnn", dense.VolumeCnn, ((1, 8, 8, 8),)),
    Entry("convnext", dense.ConvNeXt),
    Entry("group_norm", dense.GroupNormNet),
    Entry("vit", sequences.ViT, is_cnn=False),
    Entry("text_encoder", sequences.TextEncoder, ((12,),), vocabulary=50, is_cnn=False),
    Entry("causal_decoder", sequences.CausalDecoder, ((9,),), vocabulary=40, is_cnn=False),
    Entry("lstm_classifier", sequences.LstmClassifier, ((4, 20),), is_cnn=False),
    Entry("gru_tagger", sequences.GruTagger, ((7,),), vocabulary=30, is_cnn=False),
    Entry("two_in_two_out", dense.TwoInTwoOut, ((3, 12, 12), (6,))),
)
ZOO: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
