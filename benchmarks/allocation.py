"""The allocation on random networks, devices and budgets: what is called feasible is recounted, optima are checked.

The fast way and the proof answer every case; `app.domain.cost.count` recounts both. Spaces of at most `MOST`
assignments are tried one by one, and the domain's refusals are held against them too.
"""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

import numpy as np

from app.domain.budget import Budget, reach
from app.domain.cost import count
from app.domain.space import SearchSpace, is_legal
from benchmarks import random_networks as drawn
from benchmarks.cells import cell
from benchmarks.claims import Claim
from worker.search.descent import Descent
from worker.search.sensitivity import SensitivityTable
from worker.search.solver import Solver

CASES, BATCH, MOST = 10_000, 250, 20_000
NEAR = 1e-9
SAME = 1e-6
"""Of the table's scale: losses closer than this are one."""
COUNTS = ("cases", "answers", "violations", "illegal", "enumerated", "suboptimal", "missed", "wrong_bounds", "refusals",
          "wrong_refusals", "unsolved")  # fmt: skip


def run() -> None:
    """Fill the cells and print what was found."""
    for claim in claims(measure()):
        print(f"{'holds' if claim.holds else 'DOES NOT HOLD'}: {claim.text} ({claim.figures})")


def measure() -> dict[str, Any]:
    """Return the counts over all cases; every batch is a cell of its own."""
    batches = [cell(f"allocation-{n:02d}", lambda n=n: batch(n)) for n in range(CASES // BATCH)]  # type: ignore[misc]
    return {name: sum(item[name] for item in batches) for name in (*COUNTS, "seconds")}


def claims(found: dict[str, Any]) -> list[Claim]:
    """Return what the counts say."""
    wrong = found["violations"] + found["illegal"]
    answers = f"{found['cases']} cases, {found['answers']} answers, {wrong} violations"
    missed = found["suboptimal"] + found["missed"] + found["wrong_bounds"]
    optima = f"{found['enumerated']} cases tried one by one, {missed} differ, {found['unsolved']} larger ones unproven"
    refused = f"{found['refusals']} refusals, {found['wrong_refusals']} wrong"
    return [
        Claim("nothing called feasible exceeds a limit when recounted", not wrong and found["cases"] >= CASES, answers),
        Claim("the proven optimum is that of trying every assignment", not missed, optima),
        Claim("no budget that can be kept is refused", not found["wrong_refusals"], refused),
    ]


def batch(number: int) -> dict[str, Any]:
    """Return the counts of one batch."""
    start = time.perf_counter()
    total = dict.fromkeys(COUNTS, 0)
    for seed in range(number * BATCH, (number + 1) * BATCH):
        for name, value in _case(seed).items():
            total[name] += value
    return {**total, "seconds": time.perf_counter() - start}


def _case(seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    graph, device = drawn.network(rng), drawn.device(rng)
    space = drawn.space(rng, graph, device)
    budget, table = Budget(drawn.limits(rng, graph, space, device)), _table(space, seed)
    solver = Solver(graph, space, device)
    plain, proven = solver.solve(budget, table), solver.prove(budget, table, gap=0.0)
    answers = [one for one in (plain, proven.assignment) if one is not None]
    refused = not reach(graph, space, device, budget).feasible
    found = {
        "cases": 1,
        "answers": len(answers),
        "violations": sum(not budget.is_met(count(graph, one, device)) for one in answers),
        "illegal": sum(not is_legal(graph, space, one, device) for one in answers),
        "refusals": int(refused),
        "wrong_refusals": int(refused and bool(answers)),
    }
    descent = Descent(solver.costs, budget, table, {})
    if np.prod(solver.costs.sizes.astype(float)) > MOST:
        return {**found, "unsolved": int(proven.assignment is not None and proven.gap > SAME)}
    best = _least(solver, budget, descent)
    same = SAME * descent.scale
    found |= {
        "enumerated": 1,
        "missed": int((best is None) != (proven.assignment is None)),
        "suboptimal": int(best is not None and proven.loss - table.base > best + same),
        "wrong_bounds": int(best is not None and proven.bound - table.base > best + same),
        "wrong_refusals": int(refused and (best is not None or bool(answers))),
    }
    return found


def _least(solver: Solver, budget: Budget, descent: Descent) -> float | None:
    """Return the least loss of all assignments that keep the budget, each near a limit recounted."""
    states = np.array(list(itertools.product(*[range(size) for size in descent.costs.sizes])))
    ratios = descent.ratios(states).max(axis=1, initial=0.0)
    allowed = (ratios <= 1 + NEAR) & descent.costs.is_legal(states)
    states, ratios = states[allowed], ratios[allowed]
    losses = descent.loss(states)
    for index in np.argsort(losses):
        one = solver.costs.assignment(states[index])
        if ratios[index] < 1 - NEAR or budget.is_met(count(solver.costs.graph, one, solver.costs.device)):
            return float(losses[index])
    return None


def _table(space: SearchSpace, seed: int) -> SensitivityTable:
    """Return random losses that grow with the compression."""
    rng = np.random.default_rng(seed)
    parts = {"keep": space.keep, "weight": space.weight_bits, "activation": space.activation_bits}
    curves = {
        kind: {name: dict(zip(options, np.append(0, rng.exponential(0.05, len(options) - 1)).cumsum(), strict=True))
               for name, options in part.items()}
        for kind, part in parts.items()
    }  # fmt: skip
    return SensitivityTable(0.01, curves)
