"""tightfit device calibrate: measure a device and make the next revision of its profile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.base import ERROR, OK, Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from app.client import Client

Json = dict[str, Any]
POLL_S = 0.5
ENDED = frozenset({"done", "failed", "cancelled"})


def register(app: typer.Typer) -> None:
    """Add the verb to the device commands."""
    verb(app, "calibrate")(calibrate)


def calibrate(
    session: Session,
    device: Annotated[str, typer.Argument(help="Name of the device profile.")],
    model: Annotated[list[str] | None, typer.Option(help="A network to calibrate with; repeatable.")] = None,
    agent: Annotated[str | None, typer.Option(help="Agent on the device (none: the worker's host).")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end.")] = True,
) -> None:
    """Measure a device with your networks' shapes and store the next revision of its profile.

    Without --model the newest three networks that are ready are taken. Leaves with 1 where it fails.
    """
    client = session.client
    body = {"model_ids": _models(client, model), "agent_id": agent and client.find("agents", agent)["id"]}
    made = client.post(f"/v1/devices/{device}/calibrations", body)
    if wait:
        made = _followed(session, made)
    session.answer(made, lambda console: draw(console, made))
    raise typer.Exit(ERROR if made["state"] in ("failed", "cancelled") else OK)


def _models(client: Client, named: list[str] | None) -> list[str]:
    if named:
        return [client.find("models", name)["id"] for name in named]
    ready = [item["id"] for item in client.get("/v1/models", state="ready")["items"]]
    if not ready:
        raise typer.BadParameter("there is no network yet; push one: tightfit model push")
    return ready[:3]


def _followed(session: Session, made: Json) -> Json:
    """Show a progress bar until a calibration ends; return its record."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=session.console, transient=True) as bar:
        task = bar.add_task("queued", total=None)
        return follow(session.client, made, lambda now: _advance(bar, task, now))


def _advance(bar: Any, task: Any, now: Json) -> None:
    total = now["progress"]["total"] or None
    bar.update(task, description=now["stage"] or now["state"], completed=now["progress"]["done"], total=total)


def follow(client: Client, made: Json, update: Callable[[Json], None]) -> Json:
    """Poll a calibration until it ends."""
    while made["state"] not in ENDED:
        update(made)
        time.sleep(POLL_S)
        made = client.get(f"/v1/calibrations/{made['id']}")
    return made


def draw(console: Console, made: Json) -> None:
    """Show a calibration: the new revision, and errors by class before and after; or why it failed."""
    console.print(f"{made['id']}  {made['device']}  {made['state']}")
    if made["problem"]:
        console.print(f"  {made['problem']['detail']}", style="red", markup=False)
    if not made["report"]:
        return
    from rich.table import Table

    table = Table("networks", "measured", "error before", "error after", box=None)
    for kind, item in made["report"].items():
        after = "-" if item["after"] is None else f"{item['after']:.1%}"
        table.add_row(kind, str(item["networks"]), f"{item['before']:.1%}", after)
    console.print(table)
    classes = len(made["table"]["coefficients"])
    console.print(f"{classes} classes of kernels; nine of ten predictions stay below the error; {made['device_id']}")
