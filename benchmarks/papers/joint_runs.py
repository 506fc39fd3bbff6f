"""Networks of one BOPs budget, trained by joint pruning and quantization and by what it is held against.

Each run begins from what a search finds on a post-training basis; all of one network train for the same steps.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from app.domain import methods
from app.domain.budget import Budget
from app.domain.cost import count
from app.domain.graph import ModelGraph
from app.domain.space import Assignment, SearchSpace, SpaceSpec, build_space, widest
from benchmarks.papers import lenet
from benchmarks.papers.subjects import Case, trained, training_rows
from worker.graph.slicing import Slicer
from worker.methods.protocol import Subject
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import Evaluator, EvaluatorOptions, Opened, open_evaluator
from worker.search.loop import SearchLoop
from worker.search.rows import Goal, Settings

TRIALS, LOOKED_AT, FINALISTS = 40, 512, 4
"""A search looks at so many validation pictures per trial; all of them decide among its finalists."""
EIGHT = SpaceSpec(weight_bits=(8,), activation_bits=(8,))


@dataclass(frozen=True)
class Setup:
    """One network under one limit on its BOPs: its evaluator, and what else makes it a subject."""

    case: Case
    owner: Evaluator
    limit: float

    @property
    def graph(self) -> ModelGraph:
        """Return the network's picture."""
        return self.owner.graph

    def budget(self, limit: float | None = None) -> Budget:
        """Return a limit on the BOPs, by default the setup's own, as a budget."""
        return Budget({"bops": self.limit if limit is None else limit})

    def subject(self, network: CompressedNetwork, space: SearchSpace | None = None) -> Subject:
        """Return what a method works on, under the setup's own limit."""
        owner, device = self.owner, self.case[2]
        found = build_space(owner.graph, device) if space is None else space
        budget = self.budget()
        return Subject(network, owner.folded, owner.graph, device, budget, owner.rows, owner.compressor, found)

    def bops(self, network: CompressedNetwork) -> int:
        """Return the BOPs of a network, counted. Raises ArithmeticError where they are more than the limit."""
        found = count(self.graph, network.assignment, self.case[2]).bops
        if found > self.limit:
            raise ArithmeticError(f"{found} BOPs are more than the limit of {self.limit}")
        return found


def setup(name: str, share: float, of: int = 8) -> Setup:
    """Return a network under a share of the BOPs it has with some bits everywhere."""
    torch.set_num_threads(1)
    case = lenet.case() if name == "lenet" else training_rows(name)
    owner = _owner(case[0], case)
    return Setup(case, owner, share * count(owner.graph, widest(owner.graph, of), case[2]).bops)


def _owner(opened: Opened, case: Case) -> Evaluator:
    return open_evaluator(opened, case[1], case[2], EvaluatorOptions(screen=LOOKED_AT, full=5000))


def searched(owner: Evaluator, goal: Goal) -> Assignment:
    """Return what a search finds inside a goal's budget without training."""
    loop = SearchLoop(goal, Settings(trials=TRIALS, fidelity="screen"))
    for probe in loop.pending_probes():
        loop.tell_probe(probe.key, owner.evaluate(probe.assignment, "screen", "fast").metrics["kl"])
    while not loop.is_done:
        for plan in loop.next_trials(1):
            loop.tell(plan.idx, owner.evaluate(plan.assignment, "screen"))
    found = [row.assignment for row in loop.finalists(FINALISTS)]
    return min(found, key=lambda item: owner.evaluate(item).metrics["kl"])


def answer(made: Setup) -> Assignment:
    """Return the answer of a search of channels and bits."""
    space = build_space(made.graph, made.case[2])
    return searched(made.owner, Goal(made.graph, space, made.case[2], made.budget()))


def halfway(made: Setup) -> Assignment:
    """Return the answer of a search of channels alone, at 8 bits and half of the way to the limit in its logarithm."""
    device = made.case[2]
    limit = (count(made.graph, widest(made.graph, 8), device).bops * made.limit) ** 0.5
    return searched(made.owner, Goal(made.graph, build_space(made.graph, device, EIGHT), device, made.budget(limit)))


def two_stage(made: Setup, channels: Assignment, how: methods.Training, name: str) -> CompressedNetwork:
    """Return a network that was pruned at 8 bits and trained for half of the epochs, whose bits were then searched for
    the trained network, and which trained for the other half; all training is straight-through."""
    half = how.epochs // 2
    first = methods.StraightThrough(replace(how, epochs=how.epochs - half))
    pruned = trained(made.subject(made.owner.compress(channels)), first, f"{name} pruned")
    owner = _owner(whole(made, pruned), made.case)
    bits = searched(owner, Goal(made.graph, _bits_alone(made, channels), made.case[2], made.budget()))
    start = owner.compressor.compress(bits, "sequential", pruned.kept)
    second = replace(how, epochs=half, seed=how.seed + 1000)
    return trained(made.subject(start), methods.StraightThrough(second), f"{name} quantized")


def _bits_alone(made: Setup, pruned: Assignment) -> SearchSpace:
    """Return the space that is left when channels are chosen."""
    space = build_space(made.graph, made.case[2])
    return replace(space, keep={name: (kept,) for name, kept in pruned.keep.items()})


def whole(made: Setup, pruned: CompressedNetwork) -> Opened:
    """Return the float network with the weights of a pruned one in place of its own, zeros for what was removed."""
    slicer, folded = made.owner.compressor.slicer, copy.deepcopy(made.owner.folded)
    for layer in made.graph.layers:
        leaf: Any = folded.get_submodule(layer.name)
        small: Any = pruned.module.get_submodule(layer.name)
        rows, columns = slicer.columns(layer.name, pruned.kept)
        weight, bias = torch.zeros_like(leaf.weight), torch.zeros_like(leaf.bias)
        if small.weight.shape[1] == weight.shape[1]:
            weight[rows] = small.weight.detach()
        else:
            weight[rows[:, None], columns] = small.weight.detach()
        bias[rows] = small.bias.detach()
        leaf.weight, leaf.bias = (nn.Parameter(item, requires_grad=False) for item in (weight, bias))
    return replace(made.case[0], folded=folded, slicer=Slicer(folded, slicer.plan))


def shape(made: Setup, network: CompressedNetwork) -> dict[str, float]:
    """Return the share of MACs that a network has left, and the bits that uniform ones of as many BOPs would have."""
    device = made.case[2]
    found, full = (count(made.graph, item, device) for item in (network.assignment, widest(made.graph, 8)))
    return {"macs": found.macs / full.macs, "bits": (found.bops / found.macs) ** 0.5}
