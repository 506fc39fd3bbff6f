"""tightfit schedule: create, list, show, delete."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from app.commands.base import Session, verb
from app.commands.searches import Request, read_request, resolve
from app.commands.show import listing

app = typer.Typer(no_args_is_help=True, help="Cron schedules of searches: create, list, show, delete.")

ScheduleArgument = Annotated[str, typer.Argument(help="Id or name of the schedule.")]


@verb(app, "create")
def create(
    session: Session,
    request: Request,
    cron: Annotated[str, typer.Option(help="When, as a cron expression: '0 2 * * *' is every night at two.")],
    timezone: Annotated[str, typer.Option(help="Time zone of the expression.")] = "UTC",
) -> None:
    """Run a search again and again; takes the options of `search run`. A tick is skipped while the last one runs."""
    search = resolve(session.client, read_request(request))
    body = {"name": search["name"], "cron": cron, "timezone": timezone, "search": search}
    made = session.client.post("/v1/schedules", body)
    session.answer(made, lambda console: console.print(f"{made['id']}  {made['name']}  {made['cron']}"))


@verb(app, "list")
def list_schedules(session: Session) -> None:
    """List the schedules, newest first."""
    schedules = list(session.client.items("/v1/schedules"))
    heads = ("id", "name", "cron", "time zone", "last fired", "last search")
    session.answer(schedules, listing(heads, schedules, _row))


@verb(app, "show")
def show(session: Session, schedule: ScheduleArgument) -> None:
    """Show a schedule, its template and why its last tick failed, if it did."""
    found = session.client.find("schedules", schedule)
    session.answer(found, lambda console: console.print_json(data=found))


@verb(app, "delete")
def delete(session: Session, schedule: ScheduleArgument) -> None:
    """Delete a schedule; the searches it made stay."""
    found = session.client.find("schedules", schedule)
    session.client.delete(f"/v1/schedules/{found['id']}")
    session.answer({"id": found["id"], "deleted": True}, lambda console: console.print(f"{found['id']}  deleted"))


def _row(schedule: Any) -> tuple[object, ...]:
    fired = (schedule["last_fired_at"] or "never")[:16].replace("T", " ")
    problem = (schedule["problem"] or {}).get("title")
    return (
        schedule["id"],
        schedule["name"],
        schedule["cron"],
        schedule["timezone"],
        fired,
        problem or schedule["last_search_id"] or "–",
    )
