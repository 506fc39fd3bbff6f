"""Kernels between the layers: which ops are some, by number, on networks of every family."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from app.domain.graph import ModelGraph
from tests.worker.graph.nets import exported
from tests.zoo.running import folded
from worker.graph.groups import channel_plan
from worker.graph.picture import draw
from worker.graph.read import read_network
from worker.graph.rewrite import fold_batchnorm


def picture(name: str) -> ModelGraph:
    return draw(*folded(name))


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("lenet", {"max_pool2d": 2, "tanh": 1, "sigmoid": 1}),
        ("resnet", {"add": 3, "mean": 1}),
        ("mobilenet_v3", {"hardswish": 7, "mean": 3, "hardsigmoid": 2, "mul": 2, "add": 1}),
        ("densenet", {"batch_norm": 6, "concat": 4, "avg_pool2d": 1, "mean": 1}),
        ("unet", {"max_pool2d": 2, "concat": 2, "resize": 1}),
        ("gru_tagger", {"embedding": 1, "recurrent": 1, "slice": 1}),
        ("causal_decoder", {
            "embedding": 1, "rms_norm": 3, "permute": 4, "attention": 1, "add": 2, "silu": 1, "mul": 1, "slice": 1
        }),
    ],
)  # fmt: skip
def test_steps_when_a_network_is_drawn_then_each_kernel_counts_once(name: str, kinds: dict[str, int]) -> None:
    graph = picture(name)
    assert Counter(step.kind for step in graph.steps) == kinds
    known = {item.id for item in graph.activations}
    assert {name for step in graph.steps for name in (*step.inputs, step.output) if name} <= known
    assert [step.step for step in graph.steps] == sorted(step.step for step in graph.steps)


def test_windows_when_a_step_reads_many_elements_then_their_number() -> None:
    found = {step.kind: (step.window, step.positions) for step in picture("inception").steps}
    assert found["max_pool2d"] == (9, 64)
    assert found["amax"] == (64, 1)
    attention = next(step for step in picture("text_encoder").steps if step.kind == "attention")
    assert attention.window == 2 * 12


def test_tables_when_ids_are_looked_up_then_their_rows_are_noted() -> None:
    tables = [step for step in picture("text_encoder").steps if step.table]
    assert [(step.kind, step.table, step.inputs, step.positions) for step in tables] == [("embedding", 50, (), 12)]


def test_strides_and_extents_when_drawn_then_those_of_the_result() -> None:
    first = picture("mobilenet_v2").layers[0]
    assert (first.stride, first.extent) == ((2, 2), (8, 8))
    wave = picture("audio_cnn").layers[0]
    assert (wave.stride, wave.extent) == ((4,), (32,))
    assert [layer.extent for layer in picture("gru_tagger").layers] == [(), (), (), ()]


class Activated(nn.Module):
    """A ReLU read by nothing else behind its convolution, one behind a pooling, and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fused = F.relu(self.conv(x))
        return self.head(F.relu(F.max_pool2d(fused, 2)).flatten(1))


def test_activations_when_fused_or_not_then_only_the_second_is_a_step() -> None:
    module = fold_batchnorm(read_network(exported(Activated().eval(), shape=(3, 8, 8))))
    graph = draw(module, channel_plan(module))
    assert [step.kind for step in graph.steps] == ["max_pool2d", "relu"]
    assert [step.output for step in graph.steps] == [graph.layers[1].input] * 2
