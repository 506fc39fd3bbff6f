"""Learned thresholds at a density (Azarian et al. 2020) beside pruning by magnitude at the same one.

All train for the same steps. By magnitude: the largest weights over all layers in units of their layer's scale, masked
from the start or step by step. The control is the network of 8 bits trained straight through, nothing pruned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from app.domain import methods
from benchmarks.cells import Measure
from benchmarks.claims import Claim
from benchmarks.papers import lenet
from benchmarks.papers.kind import Found, Kind, Rows
from benchmarks.papers.subjects import error, fitted, prepared, trained, training_rows
from worker.methods.protocol import Subject
from worker.methods.threshold import multiplier_for_density
from worker.methods.thresholded import ThresholdStage
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import Evaluator

CODE = "ltp 1"
ABOUT = """
Weights of 8 bits pruned to a density that is met exactly (the paper prunes ResNet-50 9.1 times and AlexNet 26.4 times;
it has no figures for small networks, and aims here are ours). Controls: the same network trained straight through for
as many steps with nothing pruned, and pruning by magnitude to the same density (the largest weights over all layers in
units of their layer's root mean square live), trained for as many steps: three epochs of 30,000 pictures on LeNet-5,
four of 15,000 on resnet8. At once: masked from the start. Step by step: the density falls along the cubic of Zhu and
Gupta (2017) in the time that learned thresholds have, and what was zero may come back until its end.
"""
PARTS = {"lenet": 1 / 20, "resnet8_cifar10": 1 / 5}
WORSE = {"lenet": 0.2, "resnet8_cifar10": 1.5}
BITS = 8
PRUNING = 0.6
HOW = {
    "lenet": methods.Training(epochs=3, rows=30_000, batch=64, rate=2e-3, labels=0.5, shift=2),
    "resnet8_cifar10": methods.Training(epochs=4, rows=15_000, batch=64, rate=3e-3, labels=0.3, shift=3, mirror=True),
}


GRADUAL = "-gradual"
RENEWED = 20
"""Batches between two choices of who lives, where density falls step by step."""


def parts() -> dict[str, Measure]:
    """Return one part per network, and its strongest control behind it."""
    own: dict[str, Measure] = {name: partial(measure, name) for name in PARTS}
    return {**own, **{name + GRADUAL: partial(gradual, name) for name in PARTS}}


def measure(name: str) -> dict[str, Any]:
    """Return test errors in per cent and how many times fewer weights live."""
    owner, subject, asked = _task(name)
    learned, magnitude = trained(subject, asked, name), _by_magnitude(subject, asked, name)
    return {
        "name": name,
        "error": error(owner, learned),
        "magnitude": error(owner, magnitude),
        "control": error(owner, trained(subject, methods.StraightThrough(HOW[name]), name)),
        "float": error(owner, None),
        "fewer": {"learned": fewer(learned, subject.network), "magnitude": fewer(magnitude, subject.network)},
    }


def gradual(name: str) -> dict[str, Any]:
    """Return the test error in per cent of pruning by magnitude step by step, and how many times fewer weights live."""
    owner, subject, asked = _task(name)
    made = fitted(GradualMagnitude(subject, asked), f"{name} gradual magnitude {asked}")
    return {"name": name, "error": error(owner, made), "fewer": fewer(made, subject.network)}


def _task(name: str) -> tuple[Evaluator, Subject, methods.LearnedThresholds]:
    torch.set_num_threads(1)
    owner, subject = prepared(lenet.case() if name == "lenet" else training_rows(name, HOW[name].rows), BITS)
    return owner, subject, methods.LearnedThresholds(HOW[name], density=PARTS[name], pruning=PRUNING)


class GradualMagnitude(ThresholdStage):
    """Prunes the smallest weights, more of them as training goes on (Zhu and Gupta 2017, eq. 1): nothing is learned of
    who lives."""

    def _penalty(self, share: float) -> None:
        at = share * self._epochs / self._pruning
        if at < 1 and round(share * self._epochs * self._trainer.batches) % RENEWED == 0:
            self._choose(self._density + (1 - self._density) * (1 - at) ** 3)

    def _follow(self, share: float) -> None:
        """Leave the density to the schedule."""

    def freeze(self) -> None:
        """Choose for the last time."""
        self._choose(self._density)

    def _choose(self, density: float) -> None:
        layers = self._layers()
        for layer in layers:
            layer.threshold.frozen = None
        factor = multiplier_for_density(density, layers)
        for layer in layers:
            layer.threshold.freeze(layer.weight, factor)


def _by_magnitude(subject: Subject, asked: methods.LearnedThresholds, name: str) -> CompressedNetwork:
    """Prune by magnitude at once, then train what is left for all the epochs."""
    stage = ThresholdStage(subject, replace(asked, pruning=1 / asked.training.epochs / 2))
    stage.freeze()
    return fitted(stage, f"{name} by magnitude {asked}")


def fewer(network: CompressedNetwork, before: CompressedNetwork) -> float:
    """Return how many times fewer weights are not zero than there were before (channels that died are cut away)."""
    codes = [layer.weight_int for layer in network.layers.values() if layer.weight_int is not None]
    whole = sum(layer.weight_int.size for layer in before.layers.values() if layer.weight_int is not None)
    return whole / sum(int(np.count_nonzero(item)) for item in codes)


def rows(found: Found) -> Rows:
    """Return test errors and sizes."""
    names = ("network", "times fewer weights", "test error", "by magnitude", "step by step", "nothing pruned", "float")
    table = [list(names)]
    for name in (name for name in PARTS if name in found):
        item, steps = found[name], found.get(name + GRADUAL)
        own, magnitude, control, whole = (f"{item[key]:.2f} %" for key in ("error", "magnitude", "control", "float"))
        beside = "-" if steps is None else f"{steps['error']:.2f} %"
        table.append([name, f"{item['fewer']['learned']:.1f}", own, magnitude, beside, control, whole])
    return table


def claims(found: Found) -> list[Claim]:
    """Return what is claimed, measured or not."""
    said = []
    for name, density in PARTS.items():
        item, steps = found.get(name), found.get(name + GRADUAL)
        text = f"LTP, {name}: {1 / density:.0f} times fewer weights, at most {WORSE[name]} points against the control"
        ahead = f"LTP, {name}: ahead of pruning by magnitude at equal density"
        further = f"LTP, {name}: ahead of pruning by magnitude step by step"
        if item is None:
            said += [Claim(each, None, "-") for each in (text, ahead, further)]
            continue
        worse, times, won = item["error"] - item["control"], item["fewer"]["learned"], item["magnitude"] - item["error"]
        holds = times >= 1 / density and worse <= WORSE[name] + 1e-9
        said.append(Claim(text, holds, f"{times:.1f} times, {worse:+.2f} points"))
        said.append(Claim(ahead, won > 0, f"{won:+.2f} points"))
        said.append(_further(further, item, steps))
    return said


def _further(text: str, item: Mapping[str, Any], steps: Mapping[str, Any] | None) -> Claim:
    if steps is None:
        return Claim(text, None, "-")
    won = steps["error"] - item["error"]
    return Claim(text, won > 0, f"{won:+.2f} points")


KIND = Kind("ltp", "Learned threshold pruning (Azarian et al. 2020)", ABOUT, CODE, parts, rows, claims)
