"""Learned thresholds at a density (Azarian et al. 2020) beside pruning by magnitude at the same one.

All train for the same steps. By magnitude: the largest weights over all layers in units of their layer's scale, masked
from the start or step by step. The control is the network of 8 bits trained straight through, nothing pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from app.domain import methods
from benchmarks.cells import Measure
from benchmarks.claims import Claim
from benchmarks.papers import lenet
from benchmarks.papers.kind import Found, Kind, Pair, Rows, pairs
from benchmarks.papers.subjects import error, fitted, prepared, training_rows
from worker.methods import registry
from worker.methods.protocol import Stage, Subject
from worker.methods.threshold import multiplier_for_density
from worker.methods.thresholded import ThresholdStage
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import Evaluator

CODE = "ltp 2"
ABOUT = """
Weights of 8 bits pruned to a density that is met exactly (the paper prunes ResNet-50 9.1 times and AlexNet 26.4 times;
it has no figures for small networks, and aims here are ours). Controls: the same network trained straight through for
as many steps with nothing pruned, and pruning by magnitude to the same density (the largest weights over all layers in
units of their layer's root mean square live), trained for as many steps: three epochs of 30,000 pictures on LeNet-5,
five of 45,000 on resnet8. At once: masked from the start. Step by step: the density falls along the cubic of Zhu and
Gupta (2017) in the time that learned thresholds have, and what was zero may come back until its end. Where there are
several seeds, learned thresholds and their control are told as the mean and its standard deviation over them; the
others are of the first seed.
"""
PARTS = {"lenet": 1 / 20, "resnet8_cifar10": 1 / 5}
WORSE = {"lenet": 0.2, "resnet8_cifar10": 1.5}
BITS = 8
PRUNING = {"lenet": 0.6, "resnet8_cifar10": 0.4}
HOW = {
    "lenet": methods.Training(epochs=3, rows=30_000, batch=64, rate=2e-3, labels=0.5, shift=2),
    "resnet8_cifar10": methods.Training(epochs=5, rows=45_000, batch=64, rate=3e-3, labels=0.5, shift=1, mirror=True),
}

SEEDS = {"lenet": (0,), "resnet8_cifar10": (0, 1, 2)}
"""Of learned thresholds and their control: on CIFAR-10 an error hangs on its seed by more than half a point."""
RENEWED = 20
"""Batches between two choices of who lives, where density falls step by step."""


def parts() -> dict[str, Measure]:
    """Return one part per network and way: learned thresholds, then what they are held against; then further seeds."""
    found: dict[str, Measure] = {f"{name}-{way}": partial(measure, name, way) for name in PARTS for way in WAYS}
    for name, seeds in SEEDS.items():
        for way, seed in product(PAIRED, seeds[1:]):
            found[_part(name, way, seed)] = partial(measure, name, way, seed)
    return found


def _part(name: str, way: str, seed: int = 0) -> str:
    return f"{name}-{way}-{seed}" if seed else f"{name}-{way}"


def measure(name: str, way: str, seed: int = 0) -> dict[str, Any]:
    """Return the test errors in per cent of one way and of the float network, and how many times fewer weights live."""
    owner, subject, asked = _task(name)
    asked = replace(asked, training=replace(asked.training, seed=seed))
    made = fitted(WAYS[way](subject, asked), f"{name} {way} {asked}")
    return {
        "name": name,
        "error": error(owner, made),
        "float": error(owner, None),
        "fewer": fewer(made, subject.network),
    }


def _task(name: str) -> tuple[Evaluator, Subject, methods.LearnedThresholds]:
    torch.set_num_threads(1)
    owner, subject = prepared(lenet.case() if name == "lenet" else training_rows(name, HOW[name].rows), BITS)
    return owner, subject, methods.LearnedThresholds(HOW[name], density=PARTS[name], pruning=PRUNING[name])


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


def _at_once(subject: Subject, asked: methods.LearnedThresholds) -> Stage:
    """Return what trains a network that is pruned by magnitude from the start."""
    stage = ThresholdStage(subject, replace(asked, pruning=1 / asked.training.epochs / 2))
    stage.freeze()
    return stage


def _unpruned(subject: Subject, asked: methods.LearnedThresholds) -> Stage:
    return registry.prepare(subject, methods.StraightThrough(asked.training))


WAYS: Mapping[str, Callable[[Subject, methods.LearnedThresholds], Stage]] = {
    "learned": registry.prepare,
    "magnitude": _at_once,
    "gradual": GradualMagnitude,
    "control": _unpruned,
}
PAIRED = ("learned", "control")


def fewer(network: CompressedNetwork, before: CompressedNetwork) -> float:
    """Return how many times fewer weights are not zero than there were before (channels that died are cut away)."""
    codes = [layer.weight_int for layer in network.layers.values() if layer.weight_int is not None]
    whole = sum(layer.weight_int.size for layer in before.layers.values() if layer.weight_int is not None)
    return whole / sum(int(np.count_nonzero(item)) for item in codes)


def rows(found: Found) -> Rows:
    """Return test errors and sizes."""
    names = ("network", "times fewer weights", "test error", "by magnitude", "step by step", "nothing pruned", "float")
    table = [list(names)]
    for name in PARTS:
        own = found.get(_part(name, "learned"))
        if own is not None:
            errors = [_percent(_errors(found, name, way)) for way in WAYS]
            table.append([name, f"{own['fewer']:.1f}", *errors, f"{own['float']:.2f} %"])
    return table


def _errors(found: Found, name: str, way: str) -> list[float]:
    """Return a way's test errors over the seeds that were measured."""
    parts = (found.get(_part(name, way, seed)) for seed in SEEDS[name])
    return [item["error"] for item in parts if item is not None]


def _percent(errors: Sequence[float]) -> str:
    if not errors:
        return "-"
    spread = f" ± {stdev(errors):.2f}" if len(errors) > 1 else ""
    return f"{fmean(errors):.2f} %{spread}"


def claims(found: Found) -> list[Claim]:
    """Return what is claimed, measured or not: against the control in the mean over the seeds that both have."""
    said = []
    for name, density in PARTS.items():
        own, at_once, gradual = (found.get(_part(name, way)) for way in ("learned", "magnitude", "gradual"))
        text = f"LTP, {name}: {1 / density:.0f} times fewer weights, at most {WORSE[name]} points against the control"
        said.append(_kept(text, _pairs(found, name), WORSE[name], 1 / density))
        said.append(_ahead(f"LTP, {name}: ahead of pruning by magnitude at equal density", _points(own, at_once)))
        said.append(_ahead(f"LTP, {name}: ahead of pruning by magnitude step by step", _points(own, gradual)))
    return said


def _pairs(found: Found, name: str) -> list[Pair]:
    own, control = ([_part(name, way, seed) for seed in SEEDS[name]] for way in PAIRED)
    return pairs(found, zip(own, control, strict=True))


def _points(own: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> float | None:
    """Return by how many points learned thresholds err more."""
    return None if own is None or other is None else float(own["error"] - other["error"])


def _kept(text: str, both: Sequence[Pair], most: float, times: float) -> Claim:
    if not both:
        return Claim(text, None, "-")
    each = [float(own["error"] - control["error"]) for own, control in both]
    fewer, worse = min(own["fewer"] for own, _ in both), fmean(each)
    by_seed = f" ({', '.join(f'{item:+.2f}' for item in each)})" if len(each) > 1 else ""
    return Claim(text, fewer >= times and worse <= most + 1e-9, f"{fewer:.1f} times, {worse:+.2f} points{by_seed}")


def _ahead(text: str, worse: float | None) -> Claim:
    return Claim(text, None, "-") if worse is None else Claim(text, worse < 0, f"{-worse:+.2f} points")


KIND = Kind("ltp", "Learned threshold pruning (Azarian et al. 2020)", ABOUT, CODE, parts, rows, claims)
