"""Learned thresholds at a density (Azarian et al. 2020) beside pruning by magnitude at the same one.

All train for the same steps. By magnitude: the largest weights over all layers in units of their layer's scale, masked
from the start. The control is the network of 8 bits trained straight through, nothing pruned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from app.domain import methods
from app.domain.budget import Budget
from app.domain.space import build_space
from benchmarks.budgets import same_everywhere
from benchmarks.papers import lenet
from benchmarks.papers.subjects import error, trained, training_rows
from worker.methods.protocol import Subject
from worker.methods.thresholded import ThresholdStage
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import open_evaluator

PARTS = {"lenet": 1 / 20, "resnet8_cifar10": 1 / 5}
WORSE = {"lenet": 0.2, "resnet8_cifar10": 1.5}
BITS = 8
HOW = {
    "lenet": methods.Training(epochs=10, rows=55_000, batch=64, rate=2e-3, labels=0.5, shift=2),
    "resnet8_cifar10": methods.Training(epochs=5, rows=15_000, batch=64, rate=3e-3, labels=0.3, shift=3, mirror=True),
}


def measure(name: str) -> dict[str, Any]:
    """Return test errors in per cent and how many times fewer weights live."""
    torch.set_num_threads(1)
    opened, data, device = lenet.case() if name == "lenet" else training_rows(name)
    owner = open_evaluator(opened, data, device)
    network = owner.compress(same_everywhere(owner.graph, BITS, BITS, 1.0))
    space = build_space(owner.graph, device)
    subject = Subject(network, owner.folded, owner.graph, device, Budget({}), owner.rows, owner.compressor, space)
    asked = methods.LearnedThresholds(HOW[name], density=PARTS[name])
    learned, magnitude = trained(subject, asked), _by_magnitude(subject, asked)
    return {
        "name": name,
        "error": error(owner, learned),
        "magnitude": error(owner, magnitude),
        "control": error(owner, trained(subject, methods.StraightThrough(HOW[name]))),
        "float": error(owner, None),
        "fewer": {"learned": fewer(learned), "magnitude": fewer(magnitude)},
    }


def _by_magnitude(subject: Subject, asked: methods.LearnedThresholds) -> CompressedNetwork:
    """Prune by magnitude at once, then train what is left for all the epochs."""
    stage = ThresholdStage(subject, replace(asked, pruning=1 / asked.training.epochs / 2))
    stage.freeze()
    while not stage.done:
        stage.fit()
    return stage.finish()


def fewer(network: CompressedNetwork) -> float:
    """Return how many times fewer weights are not zero."""
    codes = [layer.weight_int for layer in network.layers.values() if layer.weight_int is not None]
    return sum(item.size for item in codes) / sum(int(np.count_nonzero(item)) for item in codes)


def claims(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
    """Return what is claimed of the parts that were measured."""
    said = []
    for item in found:
        name, worse = item["name"], item["error"] - item["control"]
        times = item["fewer"]["learned"]
        text = f"{name}: {times:.1f} times fewer weights, {worse:+.2f} points against the control"
        said.append((text, times >= 1 / PARTS[name] and worse <= WORSE[name]))
        ahead = item["magnitude"] - item["error"]
        said.append((f"{name}: ahead of magnitude at the same density by {ahead:.2f} points", ahead > 0))
    return said
