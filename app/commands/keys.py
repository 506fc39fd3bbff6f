"""tightfit key: create, list, revoke."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.base import Session, verb
from app.commands.show import listing

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")


@verb(app, "create")
def create(
    session: Session,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "key",
    expires: Annotated[
        str | None, typer.Option(help="Until when: 12h, 90d, a date, or a moment (RFC 3339). Default: for ever.")
    ] = None,
    owner: Annotated[str | None, typer.Option(help="For whom it acts; default: for you.")] = None,
) -> None:
    """Make a key. It is shown once; the service keeps only its hash."""
    try:
        until = None if expires is None else moment_of(expires, datetime.now(UTC)).isoformat()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--expires") from error
    asked = {"name": name, "owner": owner, "expires_at": until}
    key = session.client.post("/v1/keys", {name: value for name, value in asked.items() if value is not None})

    def draw(console: Console) -> None:
        console.print(f"{key['id']}  {key['name']}")
        console.print(secret(key), style="bold")

    session.answer(key, draw)


@verb(app, "list")
def list_keys(session: Session) -> None:
    """List the keys (never their secrets)."""
    keys = list(session.client.items("/v1/keys"))
    session.answer(keys, listing(("id", "name", "owner", "state", "created", "expires", "last used"), keys, _row))


@verb(app, "revoke")
def revoke(session: Session, key_id: Annotated[str, typer.Argument(help="Id of the key.")]) -> None:
    """Revoke a key at once."""
    session.client.delete(f"/v1/keys/{key_id}")
    session.answer({"id": key_id, "revoked": True}, lambda console: console.print(f"{key_id}  revoked"))


def moment_of(text: str, start: datetime) -> datetime:
    """Return when a key ends that is valid from `start` for `12h` or `90d`, until a date (its end, UTC) or a moment.

    Raises ValueError for what is none of these.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,5})([hd])", text)
    if found is not None:
        return start + timedelta(hours=int(found[1]) * (1 if found[2] == "h" else 24))
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        return datetime.fromisoformat(text).replace(tzinfo=UTC) + timedelta(days=1)
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone: add Z for UTC")
    return moment


def secret(key: Any) -> str:
    """Return the secret of a key that was just made."""
    return str(key["key"])


def _row(key: Any) -> tuple[object, ...]:
    is_over = key["expires_at"] is not None and datetime.fromisoformat(key["expires_at"]) <= datetime.now(UTC)
    state = "revoked" if key["revoked_at"] else "expired" if is_over else "valid"
    times = (_minute(key[name]) for name in ("created_at", "expires_at", "last_used_at"))
    return key["id"], key["name"], key["owner_id"], state, *times


def _minute(text: str | None) -> str:
    return text[:16].replace("T", " ") if text else "never"
