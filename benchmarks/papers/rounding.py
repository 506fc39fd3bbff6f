"""Relaxed quantization of LeNet-5 on MNIST at equal bits of weights and activations (Louizos et al. 2019, table 1).

Beside it the search's own answer at those bits without training, straight-through training for the same steps, and the
float network trained further for the same steps.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from app.domain import methods
from app.domain.budget import Budget
from app.domain.space import build_space
from benchmarks.budgets import same_everywhere
from benchmarks.papers import lenet
from benchmarks.papers.subjects import error, trained, wrong
from worker.methods.protocol import Subject
from worker.search.evaluate import Evaluator, open_evaluator

BITS = (8, 4, 2)
PAPER = {8: 0.55, 4: 0.58, 2: 0.76}
ACCEPTED = {8: 0.75, 4: 0.80, 2: 1.0}
NEAR_FLOAT = 0.15
HOW = methods.Training(epochs=10, rows=55_000, batch=64, rate=2e-3, labels=0.5, shift=2)


def measure(bits: int) -> dict[str, Any]:
    """Return test errors in per cent, and how long training took."""
    torch.set_num_threads(1)
    owner = open_evaluator(lenet.opened(), lenet.data(), lenet.DEVICE)
    assignment = same_everywhere(owner.graph, bits, bits, 1.0)
    network = owner.compress(assignment)
    space = build_space(owner.graph, lenet.DEVICE)
    subject = Subject(network, owner.folded, owner.graph, lenet.DEVICE, Budget({}), owner.rows, owner.compressor, space)
    errors, seconds = {}, {}
    for method in (methods.RelaxedQuantization(HOW), methods.StraightThrough(HOW)):
        started = time.perf_counter()
        errors[method.name] = error(owner, trained(subject, method))
        seconds[method.name] = time.perf_counter() - started
    further = lenet.trained(copy.deepcopy(_unfolded()), HOW.epochs, HOW.rate)
    return {
        "bits": bits,
        "error": errors[methods.RelaxedQuantization.name],
        "straight": errors[methods.StraightThrough.name],
        "search": error(owner, network),
        "float": error(owner, None),
        "float_control": wrong(owner, (_answers(further, owner),)),
        "seconds": seconds,
    }


def _unfolded() -> torch.nn.Module:
    """Return the float network's module, whose parameters train again."""
    folded: torch.nn.Module = copy.deepcopy(lenet.opened().folded)
    for item in folded.parameters():
        item.requires_grad_(True)
    return folded


def _answers(net: torch.nn.Module, owner: Evaluator) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([net(*batch) for batch in owner.pictures("holdout").batches(500)])


def claims(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
    """Return what is claimed of the parts that were measured."""
    said = [
        (f"{item['bits']} bits: {item['error']:.2f} % error, at most {ACCEPTED[item['bits']]} accepted",
         item["error"] <= ACCEPTED[item["bits"]])
        for item in found
    ]  # fmt: skip
    said += [
        (f"4 bits within {NEAR_FLOAT} points of float: {item['error'] - item['float']:+.2f}",
         item["error"] - item["float"] <= NEAR_FLOAT)
        for item in found if item["bits"] == 4
    ]  # fmt: skip
    return said
