"""Kill workers, the service and trial children at random: `python -m tests.reliability [--worker N] [--json] ...`.

One campaign on SQLite and, where a server answers, one on PostgreSQL beside it. What is stopped goes on where it was;
what came to a good verdict is cleared away.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.app.store.databases import server, url_of
from tests.reliability.chaos import Campaign
from tests.reliability.rig import ROOT

CAMPAIGN = {"worker": 200, "api": 200, "child": 200}
KINDS = ("sqlite", "postgresql")
COLUMNS = ("kills", "searches", "trials", "lost", "doubled")


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".data" / "chaos", help="journals, databases, logs")
    parser.add_argument("--only", choices=KINDS, help="one database only")
    parser.add_argument("--seconds", type=float, default=7200.0, help="time for the kills of a campaign")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    for kind, count in CAMPAIGN.items():
        parser.add_argument(f"--{kind}", type=int, default=count, help=f"kills of this kind ({count})")
    return parser.parse_args()


class Postgres:
    """A campaign's own database on the server, by the folder it belongs to."""

    def __init__(self, folder: Path) -> None:
        self.name = f"tightfit_chaos_{sha256(str(folder).encode()).hexdigest()[:12]}"
        self.url = url_of(self.name)

    def make(self) -> bool:
        """Create the database unless it is there; return False where no server answers."""
        try:
            with server() as connection:
                if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [self.name]).fetchall():
                    connection.execute(f"CREATE DATABASE {self.name}")
        except psycopg.OperationalError:
            return False
        return True

    def drop(self) -> None:
        """Remove the database."""
        with server() as connection:
            connection.execute(f"DROP DATABASE {self.name} WITH (FORCE)")


def campaigns(folder: Path, only: str | None, console: Console) -> dict[str, Campaign]:
    """Return campaigns by kind of database, begun or gone on with, each in a folder of its kind."""
    found = {}
    if only in (None, "sqlite"):
        found["sqlite"] = Campaign(folder / "sqlite", f"sqlite:///{folder / 'sqlite' / 'app.db'}")
    if only in (None, "postgresql"):
        database = Postgres(folder / "postgresql")
        if database.make():
            found["postgresql"] = Campaign(folder / "postgresql", database.url)
        else:
            console.print("no PostgreSQL server answers: SQLite only")
    return found


def clear(folder: Path) -> None:
    """Remove what a campaign left, for the next to begin anew."""
    if folder.name == "postgresql":
        Postgres(folder).drop()
    shutil.rmtree(folder)


def conduct(campaign: Campaign, wanted: Mapping[str, int], seconds: float, tell: Callable[[int], object]) -> Any:
    """Run a campaign to its verdict; return that, or its kills alone where it was stopped first.

    Raises AssertionError for anything lost, doubled or inconsistent, or where no search was left time to complete.
    """
    try:
        ended = campaign.run(wanted, seconds, tell) and campaign.settle()
        tell(campaign.journal.kills().total())
        if not ended:
            return {"kills": dict(campaign.journal.kills())}
        found = campaign.verdict()
        assert found["searches"].get("completed"), "no search completed: the campaign left no time for one"
        return found
    finally:
        campaign.stop()


def show(console: Console, verdicts: Mapping[str, Any]) -> None:
    """Print what came of each campaign."""
    table = Table("database", *COLUMNS)
    for kind, found in verdicts.items():
        words = (
            ", ".join(f"{count} {name}" for name, count in value.items()) if isinstance(value, dict) else str(value)
            for value in (found.get(column, "-") for column in COLUMNS)
        )
        table.add_row(kind, *words)
    console.print(table)


def main() -> int:
    """Run the campaigns side by side; leave with 2 where one was stopped or its time was over before its last kill."""
    asked, errors = arguments(), Console(stderr=True)
    wanted, folder = {kind: getattr(asked, kind) for kind in CAMPAIGN}, asked.folder.absolute()
    begun = campaigns(folder, asked.only, errors)
    with Progress(console=errors) as progress, ThreadPoolExecutor(len(KINDS)) as pool:
        running = {}
        for kind, campaign in begun.items():
            tell = partial(_update, progress, progress.add_task(f"kills, {kind}", total=sum(wanted.values())))
            running[kind] = pool.submit(conduct, campaign, wanted, asked.seconds, tell)
        try:
            verdicts = {kind: future.result() for kind, future in running.items()}
        except BaseException:
            for campaign in begun.values():
                campaign.left.set()
            raise
    ended = [kind for kind, found in verdicts.items() if "lost" in found]
    for kind in ended:
        clear(folder / kind)
    print(json.dumps(verdicts)) if asked.json else show(Console(), verdicts)
    return 0 if len(ended) == len(begun) else 2


def _update(progress: Progress, task: Any, killed: int) -> None:
    progress.update(task, completed=killed)


if __name__ == "__main__":
    sys.exit(main())
