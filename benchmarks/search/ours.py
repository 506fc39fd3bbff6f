"""tightfit as its service runs it: the same loop, settings, fidelities and repairs, with the purse's trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from app.domain.space import SpaceSpec
from benchmarks.search.arena import Arena
from worker.job import search_settings
from worker.runner import PROBE_REPAIR, REPAIR
from worker.search.loop import SearchLoop
from worker.search.rows import TrialPlan

SPACES = {
    "bits-only": SpaceSpec(prune=False),
    "pruning-only": SpaceSpec(weight_bits=(8,), activation_bits=(8,)),
}


def spec(strategy: str) -> SpaceSpec:
    """Return the space a strategy searches: tightfit's own restricted to bits or channels, for the rest all of it."""
    return SPACES.get(strategy, SpaceSpec())


def tightfit(arena: Arena, seed: int) -> None:
    """Run the search; its probes count as evaluations, as its trials do."""
    search(arena, seed)


def search(arena: Arena, seed: int, axes: Sequence[str] = ()) -> None:
    """Run the loop of a search request until it is done; with `axes` its goal is the front over them."""
    goal = {"goal": "front", "axes": [*axes]} if axes else {}
    asked = search_settings({"search": {"seed": seed, **goal}})
    left = arena.purse - len(SearchLoop(arena.goal, asked).pending_probes())
    settings = replace(asked, trials=max(1, left))
    loop = SearchLoop(arena.goal, settings)
    for probe in loop.pending_probes():
        found = arena.evaluate(probe.assignment, settings.probe_fidelity, PROBE_REPAIR, loop.reference)
        loop.tell_probe(probe.key, found.metrics["kl"])
    while not loop.is_done:
        for plan in loop.next_trials(1):
            _run(arena, loop, plan)


def _run(arena: Arena, loop: SearchLoop, plan: TrialPlan) -> None:
    """Run one trial. The baseline is the float network, which every strategy's loss refers to: it costs nothing."""
    if plan.kind == "baseline":
        loop.tell(plan.idx, arena.scorer.score(plan.assignment, plan.fidelity))
        return
    loop.tell(plan.idx, arena.evaluate(plan.assignment, plan.fidelity, plan.repair or REPAIR))
