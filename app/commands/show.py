"""Tables and progress for people. Rich is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from app.domain.artefacts import title_of
from app.domain.words import (
    amount,
    duration,
    figure,
    label,
    percent,
    quality_label,
    quality_verdict,
    verdict,
    warnings,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Json = Mapping[str, Any]


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Return a plain table; cells are text, never markup, and the first column, which is copied, is never cut."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        longest = max((len(str(row[0])) for row in rows), default=0) if index == 0 else None
        drawn.add_column(column, justify="left" if index == 0 else "right", min_width=longest)
    for row in rows:
        drawn.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return drawn


def refusal(console: Console, problem: Json) -> None:
    """Print a problem: its name, what it says, and where."""
    from rich.text import Text

    slug = str(problem.get("type") or problem.get("slug") or "").rpartition("/")[2]
    console.print(Text(slug, style="bold red"), Text(str(problem.get("detail") or problem.get("title") or "")))
    for error in problem.get("errors") or []:
        where = error.get("pointer") or error.get("field") or error.get("loc") or ""
        console.print(Text(f"  {where}: {error.get('detail') or error.get('msg') or error}"))


def listing(columns: Sequence[str], items: Sequence[Json], cells: Callable[[Json], Sequence[object]]) -> Any:
    """Return a drawing function for a list of resources."""

    def draw(console: Console) -> None:
        if not items:
            console.print("nothing here yet", style="dim")
            return
        console.print(table("", columns, [cells(item) for item in items]))

    return draw


def budget_table(rows: Sequence[Json]) -> Table:
    """Return the budget table: limit, value, slack, evidence and whether the limit is kept."""
    from rich.text import Text

    cells = [
        (
            label(row["metric"]) + (" (device)" if row.get("origin") == "device" else ""),
            amount(row["metric"], row["limit"]),
            amount(row["metric"], row["value"]),
            f"{amount(row['metric'], row['slack'])} ({percent(row['slack'] / row['limit'], 0)})",
            row.get("evidence", "modelled"),
            Text("kept", style="green") if row["met"] else Text("broken", style="bold red"),
        )
        for row in rows
    ]
    return table("Budget", ("metric", "limit", "value", "slack", "evidence", "verdict"), cells)


def search_summary(console: Console, search: Json, candidate: Json | None) -> None:
    """Print the end of a search: the verdict, the best candidate's budget table and where to go from there."""
    style = "bold green" if search.get("outcome") == "feasible" else "bold yellow"
    console.print(verdict(search), style=style)
    if search.get("processor"):
        console.print(f"trials ran on {search['processor']}", style="dim")
    for text in warnings(search):
        console.print(text, style="yellow")
    if candidate is not None:
        candidate_summary(console, candidate)


def candidate_summary(console: Console, candidate: Json) -> None:
    """Print a candidate: budget table, metrics, verification, artefacts."""
    console.print(budget_table(candidate.get("budget") or []))
    names = quality_columns(candidate)
    console.print(table("Quality", ("set", *map(quality_label, names)), quality_rows(candidate, names)))
    if judged := (candidate.get("metrics") or {}).get("quality"):
        console.print(f"hold-out {quality_verdict(judged)}", style="green" if judged["met"] else "bold red")
    console.print(f"candidate {candidate['id']}  verification: {candidate.get('verification', 'unverified')}")
    for artefact in candidate.get("artefacts") or []:
        size, title = amount("weight_bytes", artefact["bytes"]), title_of(artefact["kind"])
        console.print(f"  {artefact['kind']:<11} {size:>9}  {title:<21}  tightfit artefact get {artefact['id']}")


def quality_columns(candidate: Json) -> tuple[str, ...]:
    """Return the metrics to show of a candidate: accuracy, agreement and KL, and its search's where that is another."""
    own = (candidate.get("metrics") or {}).get("metric")
    usual = ("accuracy", "agreement", "kl")
    return usual if own is None or own in usual else (own, *usual)


def quality_rows(candidate: Json, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the set's name and the metrics' values for each set of pictures the candidate was measured on."""
    rows = []
    for key, name in (("evaluation", "evaluation"), ("holdout", "hold-out")):
        metrics = (candidate.get("metrics") or {}).get(key) or {}
        rows.append((name, *(figure(item, metrics.get(item)) for item in names)))
    return rows


def whatif_table(console: Console, found: Json) -> None:
    """Print the limits asked about, and what is known inside them: evidence, quality, costs."""
    kinds = [(name, found[name]) for name in ("measured", "predicted", "nearest") if found[name]]
    heads = ("", "limit", "smallest", *(f"{name}" for name, _ in kinds))
    rows = [
        (label(metric), amount(metric, limit), amount(metric, found["reachable"][metric]),
         *(amount(metric, item["costs"][metric]) for _, item in kinds))
        for metric, limit in found["limits"].items()
    ]  # fmt: skip
    rows.append(("quality", "", "", *(_quality(item.get("metrics") or item, found.get("metric")) for _, item in kinds)))
    console.print(table("", heads, rows))
    if found["binding"]:
        console.print(f"no network of this search's space can keep {', '.join(map(label, found['binding']))}")


def _quality(metrics: Json, metric: str | None) -> str:
    """Return what is known by the search's metric, else the accuracy or the KL."""
    name = next((name for name in (metric or "accuracy", "accuracy", "kl") if metrics.get(name) is not None), None)
    if name is None:
        return ""
    return ("" if name == "accuracy" else f"{quality_label(name)} ") + figure(name, metrics[name])


def progress_line(search: Json) -> str:
    """Return what a search is doing, in one line: stage, n/N, best so far."""
    progress = search.get("progress") or {}
    best = best_line(search)
    parts = [
        str(search.get("stage") or search.get("state")),
        f"{progress.get('done', 0)}/{progress.get('total') or '?'}",
    ]
    return "  ".join([*parts, *([best] if best else [])])


def best_line(search: Json) -> str:
    """Return the best candidate so far in a few words, or nothing."""
    metrics = (search.get("best") or {}).get("metrics") or {}
    shown = _quality(metrics, search.get("metric"))
    return f"best {shown}" if shown else ""


@contextmanager
def upload_bar(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar for bytes sent or received; yields the callback that moves it."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def search_bar(console: Console) -> Iterator[Callable[[Json], None]]:
    """Show the progress of a search; yields the callback that takes the search as it is now."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}"),
        TextColumn("{task.fields[best]}", style="green"),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("queued", total=1, best="", eta="")

        def show(search: Json) -> None:
            progress, eta = search.get("progress") or {}, search.get("eta_s")
            bars.update(
                task,
                description=str(search.get("stage") or search["state"]),
                completed=progress.get("done") or 0,
                total=progress.get("total") or 1,
                best=best_line(search),
                eta="" if eta is None else f"about {duration(eta)} left",
            )

        yield show
