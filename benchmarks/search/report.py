"""The report in the terminal: tables per network, fronts, and the verdict of every claim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.claims import VERDICTS, Claim
from benchmarks.networks import NETWORKS
from benchmarks.search import judge, others
from benchmarks.search.judge import Series
from benchmarks.search.plan import BUDGETS, STRATEGIES


def show(found: Sequence[dict[str, Any]]) -> list[Claim]:
    """Print what the cells found; return the claims."""
    console = Console()
    for network in NETWORKS:
        rows = accuracy_rows(found, network)
        if rows:
            table = Table(*rows[0], title=f"{network}: hold-out accuracy in points (seeds' spread)")
            for row in rows[1:]:
                table.add_row(*row)
            console.print(table)
    volumes = {network: judge.volumes(found, network) for network in NETWORKS}
    if any(volumes.values()):
        table = Table("network", "strategy", "hypervolume", "spread", title="fronts on the hold-out")
        for network, by_strategy in volumes.items():
            for strategy, (mean, spread) in by_strategy.items():
                table.add_row(network, strategy, f"{mean:.4f}", f"{spread:.4f}")
        console.print(table)
    claims = all_claims(found)
    table = Table("claim", "verdict", "figures")
    for claim in claims:
        table.add_row(claim.text, VERDICTS[claim.holds], claim.figures)
    console.print(table)
    return claims


def all_claims(found: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return every claim of the comparison, judged."""
    networks = list(reversed(NETWORKS))
    return [
        *judge.ranking_claims(found, networks),
        *judge.front_claims(found, networks),
        *judge.loss_claims(found),
        *others.claims(),
    ]


def accuracy_rows(found: Sequence[dict[str, Any]], network: str) -> list[list[str]]:
    """Return a header and one row per strategy; nothing where the network has no cells."""
    columns = {target.name: judge.series(found, network, target.name) for target in BUDGETS}
    if not any(columns.values()):
        return []
    rows = [["strategy", *columns]]
    for strategy in STRATEGIES:
        rows.append([strategy, *(_text(column.get(strategy)) for column in columns.values())])
    places = [judge.standing(columns[target.name], same=judge.same_search(target))[0] for target in BUDGETS]
    rows.append(["standing", *places])
    return rows


def _text(item: Series | None) -> str:
    if item is None:
        return "-"
    if not item.by_seed:
        return f"impossible (least {item.smallest:.3f})"
    missed = judge.seeds_of(item.strategy) - len(item.by_seed)
    note = "" if not missed or item.smallest is None else f", {missed} of {judge.seeds_of(item.strategy)} impossible"
    spread = f" ({100 * item.spread:.2f}{note})" if len(item.by_seed) > 1 or note else ""
    return f"{100 * item.mean:.2f}{spread}"
