"""tightfit key: create, list, revoke."""

from __future__ import annotations

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
    owner: Annotated[str | None, typer.Option(help="For whom it acts; default: for you.")] = None,
) -> None:
    """Make a key. It is shown once; the service keeps only its hash."""
    key = session.client.post("/v1/keys", {"name": name, **({"owner": owner} if owner else {})})

    def draw(console: Console) -> None:
        console.print(f"{key['id']}  {key['name']}")
        console.print(secret(key), style="bold")

    session.answer(key, draw)


@verb(app, "list")
def list_keys(session: Session) -> None:
    """List the keys (never their secrets)."""
    keys = list(session.client.items("/v1/keys"))
    session.answer(keys, listing(("id", "name", "owner", "state", "created", "last used"), keys, _row))


@verb(app, "revoke")
def revoke(session: Session, key_id: Annotated[str, typer.Argument(help="Id of the key.")]) -> None:
    """Revoke a key at once."""
    session.client.delete(f"/v1/keys/{key_id}")
    session.answer({"id": key_id, "revoked": True}, lambda console: console.print(f"{key_id}  revoked"))


def secret(key: Any) -> str:
    """Return the secret of a key that was just made."""
    return str(key["key"])


def _row(key: Any) -> tuple[object, ...]:
    state = "revoked" if key["revoked_at"] else "valid"
    return key["id"], key["name"], key["owner_id"], state, _minute(key["created_at"]), _minute(key["last_used_at"])


def _minute(text: str | None) -> str:
    return text[:16].replace("T", " ") if text else "never"
