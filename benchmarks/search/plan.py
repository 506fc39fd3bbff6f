"""What is compared: networks, budgets, strategies and seeds, as cells that one process each can fill."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from app.domain.budget import Limit
from app.domain.device import DeviceProfile, MemoryPool, Throughput
from benchmarks.budgets import DEVICE
from benchmarks.networks import NETWORKS

EVALUATIONS = 200
SEEDS = (0, 1, 2)
EIGHT = DeviceProfile(
    name="npu8",
    unit="npu",
    pairs={"default": ((8, 8),)},
    compute=(Throughput(8, 8, 20.0),),
    activation_pool=MemoryPool(None, 1000.0),
    weight_store=MemoryPool(None, 1000.0),
)
"""An accelerator that computes in 8 bits and nothing else: bits buy no time there, only channels do."""
STORING = replace(EIGHT, name="npu8-storing", pairs=DEVICE.pairs)
"""The same, but 2, 4 and 8 bits are legal in memory: a search has to find out that fewer buy no time."""


@dataclass(frozen=True)
class Target:
    """One budget of the comparison: a device and a limit relative to the network with 8 bits everywhere."""

    name: str
    device: DeviceProfile
    limit: Limit

    @property
    def relative(self) -> float:
        """Return the limit as a share of the network's with 8 bits everywhere."""
        assert self.limit.relative is not None
        return self.limit.relative


BUDGETS = (
    *(Target(f"bops-{n}", DEVICE, Limit("bops", relative=1 / n)) for n in (4, 8, 16, 32)),
    *(Target(f"latency-{n}", EIGHT, Limit("latency_ms", relative=1 / n)) for n in (2, 4)),
    *(Target(f"storing-{n}", STORING, Limit("latency_ms", relative=1 / n)) for n in (2, 4)),
)
FRONT = Target("front", DEVICE, Limit("bops", relative=1 / 2))
"""The space of the fronts: from 1/64 to 1/2 of the BOPs."""
SEEDED = ("tightfit", "tpe", "nsga2", "bits-only", "pruning-only")
FIXED = ("grid", "greedy", "greedy-joint")
STRATEGIES = ("tightfit", "tpe", "nsga2", "grid", "greedy", "greedy-joint", "bits-only", "pruning-only")
FRONTS = ("tightfit", "tpe", "nsga2", "grid", "greedy-joint")


@dataclass(frozen=True)
class Cell:
    """One run of one strategy; its result is a JSON file of this name."""

    network: str
    target: Target
    strategy: str
    seed: int

    @property
    def name(self) -> str:
        """Name the cell's file."""
        return f"search-{self.network}-{self.target.name}-{self.strategy}-{self.seed}"

    @property
    def path(self) -> str:
        """Name the cell for filters: network/budget/strategy."""
        return f"{self.network}/{self.target.name}/{self.strategy}"


def cells(only: Iterable[str] = (), seeds: Iterable[int] = SEEDS) -> list[Cell]:
    """Return the cells that match any filter: `*`-patterns of network/budget/strategy, missing parts match all."""
    patterns = ["/".join((*item.split("/"), "*", "*", "*")[:3]) for item in only] or ["*/*/*"]
    wanted = []
    for target in sorted((*BUDGETS, FRONT), key=_urgency):
        for network in reversed(NETWORKS):
            for strategy in FRONTS if target is FRONT else STRATEGIES:
                runs = tuple(seeds)[:1] if strategy in FIXED else tuple(seeds)
                wanted += [Cell(network, target, strategy, seed) for seed in runs]
    return [item for item in wanted if any(fnmatchcase(item.path, pattern) for pattern in patterns)]


def _urgency(target: Target) -> int:
    """Order the budgets by how much they tell."""
    order = ("bops-16", "bops-32", "latency-2", "latency-4", "front", "bops-8", "bops-4", "storing-2", "storing-4")
    return order.index(target.name)
