"""Relaxed quantization of LeNet-5 on MNIST at equal bits of weights and activations (Louizos et al. 2019, table 1).

Beside it the search's own answer at those bits without training, straight-through training for the same steps, and the
float network trained further for the same steps.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from app.domain import methods
from benchmarks.cells import Measure
from benchmarks.claims import Claim
from benchmarks.papers import lenet
from benchmarks.papers.kind import Found, Kind, Rows
from benchmarks.papers.subjects import error, prepared, trained, wrong
from worker.search.evaluate import Evaluator, open_evaluator

CODE = "rq 2"
ABOUT = """
LeNet-5 on MNIST, weights and activations of every layer at equal bits, as in table 1 of the paper. It starts from the
network that a search hands over at these bits without training, and trains on 30,000 pictures for three epochs (the
paper trains for many more on all 60,000). Noise begins at 0.2 of a step and falls; the second half of the training
rounds to the nearest code (the paper trains from float weights and samples to the end). Controls: straight-through
training for as many steps, the search's network as it is, the float network, and the float network trained further for
as many epochs of 55,000 pictures.
"""
FLOAT = "float"
STRAIGHT = "straight"
BITS = (8, 4, 2)
ORDER = (4, 2, 8)
"""What is measured first tells most."""
PAPER_FLOAT = 0.64
PAPER = {8: 0.55, 4: 0.58, 2: 0.76}
ACCEPTED = {8: 0.75, 4: 0.80, 2: 1.0}
NEAR_FLOAT = 0.15
HOW = methods.Training(epochs=3, rows=30_000, batch=64, rate=2e-3, labels=0.5, shift=2)


def parts() -> dict[str, Measure]:
    """Return one part per width, the controls behind them."""
    own = {str(bits): partial(measure, bits) for bits in ORDER}
    controls = {f"{bits}-{STRAIGHT}": partial(straight, bits) for bits in ORDER}
    return {**own, FLOAT: control, **controls}


def measure(bits: int) -> dict[str, Any]:
    """Return test errors in per cent of relaxed quantization and of its start, and how long training took."""
    torch.set_num_threads(1)
    owner, subject = prepared(lenet.case(), bits)
    started = time.perf_counter()
    found = error(owner, trained(subject, methods.RelaxedQuantization(HOW), f"lenet {bits}"))
    return {
        "bits": bits,
        "error": found,
        "search": error(owner, subject.network),
        "float": error(owner, None),
        "seconds": time.perf_counter() - started,
    }


def straight(bits: int) -> dict[str, Any]:
    """Return the test error in per cent of straight-through training."""
    torch.set_num_threads(1)
    owner, subject = prepared(lenet.case(), bits)
    return {"bits": bits, "error": error(owner, trained(subject, methods.StraightThrough(HOW), f"lenet {bits}"))}


def control() -> dict[str, Any]:
    """Return the float network's test error in per cent, as it is and trained on for as many steps."""
    torch.set_num_threads(1)
    owner = open_evaluator(lenet.opened(), lenet.data(), lenet.DEVICE)
    further = lenet.trained(_unfolded(), HOW.epochs, HOW.rate)
    return {"float": error(owner, None), "trained": wrong(owner, (_answers(further, owner),))}


def _unfolded() -> torch.nn.Module:
    """Return the float network's module, whose parameters train again."""
    folded: torch.nn.Module = copy.deepcopy(lenet.opened().folded)
    for item in folded.parameters():
        item.requires_grad_(True)
    return folded


def _answers(net: torch.nn.Module, owner: Evaluator) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([net(*batch) for batch in owner.pictures("holdout").batches(500)])


def rows(found: Found) -> Rows:
    """Return test errors beside the paper's."""
    table = [["bits, weights and activations", "test error", "accepted", "paper", "straight-through", "search alone"]]
    for bits, item in _by_bits(found):
        beside = found.get(f"{bits}-{STRAIGHT}")
        figures = [_percent(value) for value in (item["error"], ACCEPTED[bits], PAPER[bits])]
        other = "-" if beside is None else _percent(beside["error"])
        table.append([str(bits), *figures, other, _percent(item["search"])])
    if FLOAT in found:
        names = {"float, as it is": "float", "float, trained on": "trained"}
        table += [[name, _percent(found[FLOAT][key]), "", _percent(PAPER_FLOAT), "", ""] for name, key in names.items()]
    return table


def _percent(value: float) -> str:
    return f"{value:.2f} %"


def claims(found: Found) -> list[Claim]:
    """Return what is claimed, measured or not."""
    measured = dict(_by_bits(found))
    said = [_accepted(bits, measured.get(bits)) for bits in BITS]
    worse = measured[4]["error"] - measured[4]["float"] if 4 in measured else None
    holds = None if worse is None else worse <= NEAR_FLOAT + 1e-9
    figures = "-" if worse is None else f"{worse:+.2f} points"
    return [*said, Claim(f"RQ, LeNet-5 at 4 bits: within {NEAR_FLOAT} points of float", holds, figures)]


def _accepted(bits: int, item: Mapping[str, Any] | None) -> Claim:
    text = f"RQ, LeNet-5 at {bits} bits: at most {ACCEPTED[bits]:.2f} % test error"
    if item is None:
        return Claim(text, None, "-")
    aim = "reached" if item["error"] <= PAPER[bits] + 1e-9 else "not reached"
    figures = f"{item['error']:.2f} %; the paper's {PAPER[bits]:.2f} % {aim}"
    return Claim(text, item["error"] <= ACCEPTED[bits] + 1e-9, figures)


def _by_bits(found: Found) -> list[tuple[int, Mapping[str, Any]]]:
    return [(bits, found[str(bits)]) for bits in BITS if str(bits) in found]


KIND = Kind("rq-lenet", "Relaxed quantization (Louizos et al. 2019)", ABOUT, CODE, parts, rows, claims)
