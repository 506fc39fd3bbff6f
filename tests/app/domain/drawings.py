"""A small picture and profile for the domain's tests: figures that can be checked by hand."""

from __future__ import annotations

from app.domain.device import DeviceProfile, MemoryPool, Overheads, Power, Throughput
from app.domain.graph import Activation, ChannelGroup, Layer, ModelGraph, Width

PAIRS = tuple((w, a) for w in (8, 4, 2) for a in (8, 4))


def profile(**changes: object) -> DeviceProfile:
    fields: dict[str, object] = {
        "name": "hand-npu",
        "unit": "npu",
        "pairs": {"default": PAIRS},
        "compute": (Throughput(8, 8, 1.0, {"default": 0.5}), Throughput(4, 8, 2.0, {"default": 0.5})),
        "activation_pool": MemoryPool(65536, 1.0),
        "weight_store": MemoryPool(None, 0.5),
        "overheads": Overheads(10.0, 1.0, 0.0),
        "power": Power({f"{w}x{a}": 0.01 * w * a for w, a in PAIRS}, 1.0),
    }
    return DeviceProfile(**{**fields, **changes})  # type: ignore[arg-type]


def conv(
    name: str, shape: tuple[int, ...], positions: int, widths: tuple[Width, Width], ends: tuple[str, str]
) -> Layer:
    return Layer(name, "conv", shape, 1, positions, *widths, *ends)


def two_convs() -> ModelGraph:
    """Two 3x3 convolutions: 3 to 16 channels at 32x32, then 16 to 32 at 16x16."""
    image, first, second = Width((), 3), Width((("g1", 1),)), Width((("g2", 1),))
    return ModelGraph(
        layers=(
            conv("conv1", (16, 3, 3, 3), 1024, (image, first), ("input", "relu1")),
            conv("conv2", (32, 16, 3, 3), 256, (first, second), ("relu1", "relu2")),
        ),
        groups=(
            ChannelGroup("g1", 16, ("conv1",), ("conv2",)),
            ChannelGroup("g2", 32, ("conv2",), ()),
        ),
        activations=(
            Activation("input", image, 1024, 0, 1, "input"),
            Activation("relu1", first, 1024, 1, 2, unsigned=True),
            Activation("relu2", second, 256, 2, 2, "output"),
        ),
        input_shape=(3, 32, 32),
        output_shape=(32, 16, 16),
        parameters=16 * 27 + 32 * 144 + 48,
        op_counts={"conv2d": 2},
    )


def skip() -> ModelGraph:
    """A residual block on 8 channels at 4x4: b = conv(a), c = conv(b), d = a + c, and a depthwise layer behind it."""
    image, trunk, inner = Width((), 4), Width((("t", 1),)), Width((("i", 1),))
    return ModelGraph(
        layers=(
            conv("stem", (8, 4, 1, 1), 16, (image, trunk), ("input", "a")),
            conv("conv_b", (8, 8, 3, 3), 16, (trunk, inner), ("a", "b")),
            conv("conv_c", (8, 8, 3, 3), 16, (inner, trunk), ("b", "c")),
            Layer("deep", "depthwise", (8, 1, 3, 3), 8, 16, trunk, trunk, "d", "e"),
        ),
        groups=(
            ChannelGroup("t", 8, ("stem", "conv_c", "deep"), ("conv_b", "deep")),
            ChannelGroup("i", 8, ("conv_b",), ("conv_c",)),
        ),
        activations=(
            Activation("input", image, 16, 0, 1, "input"),
            Activation("a", trunk, 16, 1, 4),
            Activation("b", inner, 16, 2, 3),
            Activation("c", trunk, 16, 3, 4),
            Activation("d", trunk, 16, 4, 5),
            Activation("e", trunk, 16, 5, 5, "output"),
        ),
        input_shape=(4, 4, 4),
        output_shape=(8, 4, 4),
        parameters=32 + 576 + 576 + 72 + 32,
        op_counts={"conv2d": 4, "add": 1},
    )
