"""tightfit audit, events: who changed what, and what changes now."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.base import Session, verb
from app.commands.show import listing

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the commands."""
    verb(app, "audit")(audit)
    verb(app, "events")(events)


def audit(
    session: Session,
    object_id: Annotated[str | None, typer.Option("--object", help="Of what happened to this id.")] = None,
    key_id: Annotated[str | None, typer.Option("--by", help="Of what this API key did.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
) -> None:
    """Show who changed what, newest first. Needs an administrator's key."""
    found = list(islice(session.client.items("/v1/audit", object_id=object_id, key_id=key_id), limit))
    session.answer(found, listing(("at", "action", "object", "of", "by", "for"), found, _row))


def events(
    session: Session,
    after: Annotated[int, typer.Option(min=0, help="Begin behind this number.")] = 0,
) -> None:
    """Follow all that changes of your objects, a line each; begins with what is still known. Ctrl-C leaves."""
    for event in session.client.events(after):
        if session.as_json:
            typer.echo(json.dumps(event))
        else:
            _draw(session.console, event)


def _draw(console: Console, event: Any) -> None:
    at, state = event["at"][:19].replace("T", " "), event.get("state", "")
    console.print(f"{event['seq']:>6}  {at}  {event['kind']:<20} {event['id']}  [bold]{state}[/bold]")


def _row(entry: Any) -> tuple[object, ...]:
    at = entry["at"][:19].replace("T", " ")
    by = entry["key_id"] or "–"
    return at, entry["action"], entry["object_id"], entry["object_owner_id"] or "–", by, entry["owner_id"] or "–"
