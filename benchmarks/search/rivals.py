"""The rivals, as a fair author would write them: counting costs is free, so only assignments inside the budget are
evaluated; all of them get tightfit's repair, its loss (KL to the float outputs) and its choice among the finalists."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler

from app.domain.graph import ModelGraph
from app.domain.space import Assignment, SearchSpace
from benchmarks.search.arena import Arena
from worker.runner import PROBE_REPAIR
from worker.search.sensitivity import probes, reference

warnings.filterwarnings("ignore", category=ExperimentalWarning)
ASKS = {"tpe": 1000, "nsga2": 6000}
"""How often a sampler is asked at most: TPE's asks grow with its history."""
POPULATION = 30
WORST = 1e3

Suggested = dict[str, int]


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return one ordered parameter per group, layer and activation that leave a choice (levels, widest first)."""
    parts = {"keep": space.keep, "weight": space.weight_bits, "activation": space.activation_bits}
    return {
        f"{kind}:{name}": IntDistribution(0, len(choices) - 1)
        for kind, part in parts.items()
        for name, choices in part.items()
        if len(choices) > 1
    }


def assignment_of(space: SearchSpace, params: Suggested) -> Assignment:
    """Return the assignment of suggested levels."""
    parts = [
        {name: choices[params.get(f"{kind}:{name}", 0)] for name, choices in part.items()}
        for kind, part in (
            ("keep", space.keep),
            ("weight", space.weight_bits),
            ("activation", space.activation_bits),
        )
    ]
    return Assignment(*parts)


def sampler(name: str, seed: int) -> BaseSampler:
    """Return the plain sampler; trials name their budget as a constraint."""
    if name == "tpe":
        return TPESampler(seed=seed, multivariate=True, group=True)
    return NSGAIISampler(seed=seed, population_size=POPULATION)


def tpe(arena: Arena, seed: int) -> None:
    """Plain multivariate TPE over keep ratios and bits."""
    _sampled(arena, "tpe", seed)


def nsga2(arena: Arena, seed: int) -> None:
    """Plain NSGA-II over keep ratios and bits."""
    _sampled(arena, "nsga2", seed)


def _sampled(arena: Arena, name: str, seed: int) -> None:
    space = arena.goal.space
    choices = distributions(space)
    study = optuna.create_study(sampler=sampler(name, seed), direction="minimize")
    for _ in range(ASKS[name]):
        trial = study.ask(choices)
        assignment = assignment_of(space, trial.params)
        excess = arena.share(assignment) - 1
        trial.set_constraint("budget", excess)
        study.tell(trial, WORST if excess > 0 else arena.evaluate(assignment).metrics["kl"])


# uniform grid


def grid(arena: Arena, seed: int) -> None:
    """All uniform bits by uniform keep ratios, with and without 8 bits at both ends; the widest feasible ones first."""
    found = {item.digest: item for item in uniform(arena.goal.graph, arena.goal.space)}
    feasible = [(share, item) for item in found.values() if (share := arena.share(item)) <= 1]
    for _, item in sorted(feasible, key=lambda pair: (-pair[0], pair[1].digest)):
        arena.evaluate(item)


def uniform(graph: ModelGraph, space: SearchSpace) -> Iterator[Assignment]:
    """Return every uniform assignment: each group keeps the legal count nearest to the ratio."""
    weights = sorted({bits for item in space.weight_bits.values() for bits in item})
    widths = {item.id: item.channels for item in graph.groups}
    activations = sorted({bits for item in space.activation_bits.values() for bits in item if bits <= 8})
    ratios = sorted({count / widths[name] for name, counts in space.keep.items() for count in counts})
    ends = {graph.layers[0].name, graph.layers[-1].name}
    for ratio, weight, activation, guarded in itertools.product(ratios, weights, activations, (False, True)):
        keep = {name: _nearest(counts, ratio * widths[name]) for name, counts in space.keep.items()}
        bits = {
            name: _nearest(options, 8 if guarded and name in ends else weight)
            for name, options in space.weight_bits.items()
        }
        yield Assignment(
            keep, bits, {name: _nearest(options, activation) for name, options in space.activation_bits.items()}
        )


def _nearest(choices: Sequence[int], wanted: float) -> int:
    return min(choices, key=lambda choice: (abs(choice - wanted), -choice))


# greedy

Change = tuple[str, str, int]


def greedy(arena: Arena, seed: int) -> None:
    """One layer at a time, bits only, as AIMET does: a KL table, then the change that costs least per BOPs saved."""
    _greedy(arena, ("weight", "activation"))


def greedy_joint(arena: Arena, seed: int) -> None:
    """The same over channels too."""
    _greedy(arena, ("keep", "weight", "activation"))


def _greedy(arena: Arena, kinds: Sequence[str]) -> None:
    """Walk by the table alone, evaluate what it ends in, then walk again with the evaluations left, the best changes
    of every step measured in place."""
    base = reference(arena.goal.graph, arena.goal.space)
    table = _table(arena, base, kinds)
    steps = list(_walk(arena, base, table))
    if arena.share(steps[-1]) > 1:
        return
    arena.evaluate(steps[-1])
    tried = max(1, (arena.purse - arena.spent) // max(1, len(steps)))
    for _ in _walk(arena, base, table, pick=lambda options: _measured(arena, options[:tried])):
        pass


def greedy_path(arena: Arena, until: float) -> Iterator[Assignment]:
    """Return every step of the joint walk down to a share of the limit."""
    base = reference(arena.goal.graph, arena.goal.space)
    return _walk(arena, base, _table(arena, base, ("keep", "weight", "activation")), until)


def _measured(arena: Arena, options: Sequence[Assignment]) -> Assignment:
    return min(options, key=lambda item: arena.evaluate(item).metrics["kl"])


def _table(arena: Arena, base: Assignment, kinds: Sequence[str]) -> dict[Change, float]:
    """Return the loss that every single change costs, measured as tightfit's probes are."""
    start = arena.evaluate(base, "screen", PROBE_REPAIR, base).metrics["kl"]
    wanted = set(_changes(arena.goal.space, kinds))
    found: dict[Change, float] = {}
    for probe in probes(arena.goal.graph, arena.goal.space):
        if (probe.kind, probe.name, probe.value) in wanted:
            loss = arena.evaluate(probe.assignment, "screen", PROBE_REPAIR, base).metrics["kl"]
            found[probe.kind, probe.name, probe.value] = max(0.0, loss - start)
    return found


def _changes(space: SearchSpace, kinds: Sequence[str]) -> list[Change]:
    parts = {"keep": space.keep, "weight": space.weight_bits, "activation": space.activation_bits}
    return [(kind, name, value) for kind in kinds for name, values in parts[kind].items() for value in values[1:]]


def changed(base: Assignment, change: Change) -> Assignment:
    """Return an assignment with one choice changed."""
    parts = {
        "keep": dict(base.keep),
        "weight": dict(base.weight_bits),
        "activation": dict(base.activation_bits),
    }
    parts[change[0]][change[1]] = change[2]
    return Assignment(parts["keep"], parts["weight"], parts["activation"])


def _walk(
    arena: Arena,
    base: Assignment,
    table: dict[Change, float],
    until: float = 1.0,
    pick: Callable[[Sequence[Assignment]], Assignment] = lambda options: options[0],
) -> Iterator[Assignment]:
    """Return the assignments on the way into the budget: each step takes one of the changes worth most."""
    state = base
    yield state
    while arena.share(state) > until:
        options = _options(arena, state, table)
        if not options:
            return
        state = pick(options)
        yield state


def _options(arena: Arena, state: Assignment, table: dict[Change, float]) -> list[Assignment]:
    """Return the changes that lower the cost, the least loss per (logarithmic) saving first."""
    here, current, found = arena.share(state), _levels(state), []
    for change, loss in table.items():
        kind, name, value = change
        before = current[kind][name]
        if value >= before:
            continue
        candidate = changed(state, change)
        saved = math.log(here / arena.share(candidate))
        if saved > 0:
            more = max(0.0, loss - table.get((kind, name, before), 0.0))
            found.append((more / saved, -saved, candidate.digest, candidate))
    return [item[-1] for item in sorted(found, key=lambda item: item[:3])]


def _levels(state: Assignment) -> dict[str, Any]:
    return {"keep": state.keep, "weight": state.weight_bits, "activation": state.activation_bits}
