"""tightfit search: pause, resume, extend, priority."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from app.commands.base import Session, verb
from app.domain.turns import FIRST, LAST

SearchArgument = Annotated[str, typer.Argument(help="Id or name of the search.")]


def register(app: typer.Typer) -> None:
    """Add the verbs that steer a search."""
    verb(app, "pause")(pause)
    verb(app, "resume")(resume)
    verb(app, "extend")(extend)
    verb(app, "priority")(priority)


def pause(session: Session, search: SearchArgument) -> None:
    """Pause a search behind the trial in flight."""
    _steer(session, search, "pause")


def resume(session: Session, search: SearchArgument) -> None:
    """Let a paused search go on where it stopped."""
    _steer(session, search, "resume")


def extend(
    session: Session,
    search: SearchArgument,
    trials: Annotated[int | None, typer.Option(min=1, help="New number of trials, more than it has.")] = None,
    max_wall_s: Annotated[float | None, typer.Option(min=1.0, help="New number of seconds, more than it has.")] = None,
) -> None:
    """Give a search more trials or time; one that is completed goes on."""
    if trials is None and max_wall_s is None:
        raise typer.BadParameter("say --trials, --max-wall-s or both")
    given = {"trials": trials, "max_wall_s": max_wall_s}
    _steer(session, search, "extend", {key: value for key, value in given.items() if value is not None})


def priority(
    session: Session,
    search: SearchArgument,
    value: Annotated[int, typer.Argument(min=FIRST, max=LAST, help="1 is served first, 5 last.")],
) -> None:
    """Put a search before or behind others."""
    _steer(session, search, "priority", {"priority": value})


def _steer(session: Session, search: str, verb: str, body: dict[str, Any] | None = None) -> None:
    found = session.client.steer_search(session.client.find("searches", search)["id"], verb, body)
    session.answer(
        found, lambda console: console.print(f"{found['id']}  {found['state']}  priority {found['priority']}")
    )
