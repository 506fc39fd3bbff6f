"""What the cells say: paired differences, who is first, and whether what is claimed holds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.claims import Claim
from benchmarks.search.plan import BUDGETS, FRONTS, SEEDS, STRATEGIES, Target

HOLDOUT = 10_000
Json = Mapping[str, Any]
Standing = Literal["first", "tied", "behind", "impossible", "incomplete"]
OURS = "tightfit"
BEYOND = ("greedy-joint",)
"""Strategies that nobody offers: half of tightfit (its table, its space), printed beside the verdicts."""
ALLOWED_LOSS = {
    "bops-16": {"resnet8_cifar10": 0.10, "vgg7_cifar10": 0.08, "lenet5bn_mnist": 0.03},
    "bops-4": {"lenet5bn_mnist": 0.008},
}
AIMED_LOSS = {"bops-16": {"resnet8_cifar10": 0.08, "vgg7_cifar10": 0.06, "lenet5bn_mnist": 0.015}}


@dataclass(frozen=True)
class Series:
    """One strategy's hold-out accuracies at one budget by seed; `smallest`: what it reached where it found nothing."""

    strategy: str
    by_seed: Mapping[int, float]
    smallest: float | None = None

    @property
    def mean(self) -> float:
        """Return the mean over seeds."""
        return statistics.fmean(self.by_seed.values())

    @property
    def spread(self) -> float:
        """Return the seeds' standard deviation (0 of one)."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else 0.0

    def at(self, seed: int) -> float | None:
        """Return the accuracy at a seed; a strategy without chance has one result for all."""
        if len(self.by_seed) == 1 and self.strategy != OURS:
            return next(iter(self.by_seed.values()))
        return self.by_seed.get(seed)


@dataclass(frozen=True)
class Paired:
    """tightfit minus a rival, seed by seed: mean, the seeds' spread (standard deviation), binomial error."""

    rival: str
    mean: float
    spread: float
    binomial: float

    @property
    def standing(self) -> Standing:
        """Return who is ahead by more than the seeds' spread and the pictures' error."""
        band = max(self.spread, self.binomial)
        return "first" if self.mean > band else "behind" if self.mean < -band else "tied"


def _compared(cell: Json) -> float:
    found: float = cell["holdout"]["accuracy"]
    return found


def _delivered(cell: Json) -> float:
    """Return the accuracy of what the service would hand out: polished, where that was measured."""
    return _compared(cell.get("polished", cell))


def series(
    cells: Sequence[Json], network: str, budget: str, accuracy: Callable[[Json], float] = _compared
) -> dict[str, Series]:
    """Return what every strategy reached at one network's budget."""
    found = {}
    for strategy in STRATEGIES:
        own = [c for c in cells if (c["network"], c["budget"], c["strategy"]) == (network, budget, strategy)]
        if own:
            by_seed = {c["seed"]: accuracy(c) for c in own if c["outcome"] == "found"}
            smallest = min((c["smallest"] for c in own if c["outcome"] == "impossible"), default=None)
            found[strategy] = Series(strategy, by_seed, smallest)
    return found


def paired(ours: Series, rival: Series) -> Paired:
    """Compare two strategies over the seeds that both have (a seed at which the rival found nothing is left out)."""
    pairs = [(value, other) for seed, value in ours.by_seed.items() if (other := rival.at(seed)) is not None]
    differences = [value - other for value, other in pairs]
    spread = statistics.stdev(differences) if len(differences) > 1 else 0.0
    return Paired(rival.strategy, statistics.fmean(differences), spread, binomial(ours.mean, rival.mean))


def binomial(one: float, other: float) -> float:
    """Return the standard error of a difference of two accuracies on the hold-out, as if pictures were unpaired (an
    upper bound: both networks see the same pictures)."""
    return math.sqrt((one * (1 - one) + other * (1 - other)) / HOLDOUT)


def same_search(target: Target) -> tuple[str, ...]:
    """Return the restricted searches that are the whole one at a budget: channels alone, on a device of one pair."""
    pairs = {pair for pairs in target.device.pairs.values() for pair in pairs}
    return ("pruning-only",) if len(pairs) == 1 else ()


def standing(
    found: Mapping[str, Series], beyond: Sequence[str] = (), same: Sequence[str] = ()
) -> tuple[Standing, Paired | None]:
    """Return tightfit's standing against its best rival; of those in `BEYOND` only the named ones count, and those in
    `same` are no rivals."""
    ours = found.get(OURS)
    left_out = ({OURS, *BEYOND} - {*beyond}) | {*same}
    rivals = [item for name, item in found.items() if name not in left_out and item.by_seed]
    if ours is None or len(found) < len(STRATEGIES):
        return "incomplete", None
    if not ours.by_seed:
        return ("behind" if rivals else "impossible"), None
    if not rivals:
        return "first", None
    closest = min((paired(ours, item) for item in rivals), key=lambda item: item.mean)
    return closest.standing, closest


def ranking_claims(cells: Sequence[Json], networks: Sequence[str]) -> list[Claim]:
    """Return first, tied or behind per network and budget, against what is claimed there."""
    claims = []
    for network in networks:
        for target in BUDGETS:
            found = series(cells, network, target.name)
            same = same_search(target)
            where, closest = standing(found, same=same)
            wanted = _wanted(network, target.name)
            figures = where if closest is None else f"{where}: {_points(closest)}"
            further, other = standing(found, BEYOND, same)
            if other is not None and other.rival in BEYOND:
                figures += f"; {further} with {_points(other)}"
            claims.append(Claim(f"{network} at {target.name}: {wanted}", _holds(where, closest, wanted), figures))
    return claims


def _wanted(network: str, budget: str) -> str:
    if budget == "bops-4":
        return "at most 1.0 point behind"
    if budget.startswith("storing"):  # the best there is has 8 bits: channels alone can't be beaten, only found
        return "first or tied"
    return "first or tied" if budget == "bops-8" or "mnist" in network else "first"


def _holds(where: Standing, closest: Paired | None, wanted: str) -> bool | None:
    if where == "incomplete":
        return None
    if where == "impossible":  # for everybody
        return True
    if wanted.startswith("at most"):
        return closest is None or closest.mean >= -0.010
    return where == "first" or (where == "tied" and wanted != "first")


def _points(item: Paired) -> str:
    return (
        f"{100 * item.mean:+.2f} points against {item.rival} "
        f"(seeds {100 * item.spread:.2f}, binomial {100 * item.binomial:.2f})"
    )


def loss_claims(cells: Sequence[Json]) -> list[Claim]:
    """Return hold-out losses against float at the budgets that have a bound."""
    claims = []
    for budget, bounds in ALLOWED_LOSS.items():
        for network, bound in bounds.items():
            own = series(cells, network, budget, _delivered).get(OURS)
            text = f"{network} at {budget} loses at most {100 * bound:.1f} points to float, polished"
            if own is None or not own.by_seed:
                claims.append(Claim(text, None if own is None else False, "-"))
                continue
            whole = next(c["float"] for c in cells if c["network"] == network and "float" in c)
            lost, aim = whole - own.mean, AIMED_LOSS.get(budget, {}).get(network)
            reached = "" if aim is None else f", aim {100 * aim:.1f} {'reached' if lost <= aim else 'not reached'}"
            claims.append(Claim(text, lost <= bound, f"{100 * lost:.2f} (spread {100 * own.spread:.2f}){reached}"))
    return claims


def front_claims(cells: Sequence[Json], networks: Sequence[str]) -> list[Claim]:
    """Return whether tightfit's hypervolume on the hold-out is the highest."""
    claims = []
    for network in networks:
        found = volumes(cells, network)
        text = f"{network}: highest hypervolume at equal evaluations"
        if len(found) < len(FRONTS):
            claims.append(Claim(text, None, "-"))
            continue
        best = max((name for name in found if name != OURS), key=lambda name: found[name][0])
        figures = f"{found[OURS][0]:.4f} against {found[best][0]:.4f} ({best})"
        claims.append(Claim(text, found[OURS][0] > found[best][0], figures))
    return claims


def volumes(cells: Sequence[Json], network: str) -> dict[str, tuple[float, float]]:
    """Return mean and spread over seeds of every strategy's hypervolume."""
    found = {}
    for strategy in FRONTS:
        own = [
            c["hypervolume"]
            for c in cells
            if (c["network"], c["budget"], c["strategy"]) == (network, "front", strategy)
        ]
        if own:
            found[strategy] = (statistics.fmean(own), statistics.stdev(own) if len(own) > 1 else 0.0)
    return found


def seeds_of(strategy: str) -> int:
    """Return how many runs a strategy has."""
    return len(SEEDS) if strategy in ("tightfit", "tpe", "nsga2", "bits-only", "pruning-only") else 1
