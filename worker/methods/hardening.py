"""From what training came to, in real numbers, to an assignment that a device allows and a budget has room for.

Channels above their threshold stay, rounded up to a legal number; widths go to the nearest legal one on the scale of
log2 (powers of two: 2^round(log2 b)). Where that breaks a limit, the search's allocator finds the nearest assignment
inside all limits: removing a channel costs its margin over the threshold, a width the squared distance in log2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.domain.budget import Budget
from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.domain.space import Assignment, SearchSpace
from worker.search.sensitivity import SensitivityTable
from worker.search.solver import Solver

UNWANTED = 1e-3
"""What keeping a channel below the threshold costs, beside removing one above it."""


@dataclass(frozen=True)
class Learned:
    """What training came to, by name; what is missing was not trained.

    `margins` say by channel group how far each channel lies above its threshold (log alpha - log alpha_th [channels]),
    `weight_bits` and `activation_bits` are real-valued widths.
    """

    margins: Mapping[str, Tensor]
    weight_bits: Mapping[str, float]
    activation_bits: Mapping[str, float]

    def distances(self, space: SearchSpace) -> SensitivityTable:
        """Return how far each legal choice lies from what was learned."""
        return SensitivityTable(
            0.0,
            {
                "keep": {name: _by_count(self.margins[name], space.keep[name]) for name in self.margins},
                "weight": {name: _by_width(bits, space.weight_bits[name]) for name, bits in self.weight_bits.items()},
                "activation": {
                    name: _by_width(bits, space.activation_bits[name]) for name, bits in self.activation_bits.items()
                },
            },
        )


@dataclass(frozen=True)
class Hardened:
    """An assignment, and by channel group the channels that stay, ascending."""

    assignment: Assignment
    kept: Mapping[str, tuple[int, ...]]


def hardened(
    learned: Learned, graph: ModelGraph, space: SearchSpace, device: DeviceProfile, budget: Budget
) -> Hardened | None:
    """Return the legal assignment nearest to what was learned that keeps every limit; None where none was found."""
    found = Solver(graph, space, device).solve(budget, learned.distances(space))
    if found is None:
        return None
    widths = {group.id: group.channels for group in graph.groups}
    kept = {
        name: best(learned.margins.get(name, torch.ones(widths[name])), count) for name, count in found.keep.items()
    }
    return Hardened(found, kept)


def best(margins: Tensor, count: int) -> tuple[int, ...]:
    """Return the `count` channels with the largest margins, ascending; of equals the first."""
    order = torch.sort(margins, descending=True, stable=True).indices[:count]
    return tuple(int(index) for index in order.sort().values)


def _by_count(margins: Tensor, counts: Sequence[int]) -> dict[int, float]:
    ranked = margins.detach().double().sort(descending=True).values
    lost, held = ranked.clamp_min(0.0), (-ranked).clamp_min(0.0) * UNWANTED
    return {count: float(lost[count:].sum() + held[:count].sum()) / len(ranked) for count in counts}


def _by_width(bits: float, widths: Sequence[int]) -> dict[int, float]:
    return {width: math.log2(width / bits) ** 2 for width in widths}
