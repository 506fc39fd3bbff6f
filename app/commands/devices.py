"""tightfit device: list, show, push."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.base import Session, verb
from app.commands.models import FileArgument
from app.commands.show import listing
from app.commands.words import amount

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Device profiles: list, look inside, add your own.")


@verb(app, "list")
def list_devices(session: Session) -> None:
    """List the device profiles, built-in ones first."""
    devices = list(session.client.items("/v1/devices"))
    session.answer(devices, listing(("id", "name", "revision", "pairs (w x a)", "memory"), devices, _row))


@verb(app, "show")
def show(session: Session, device: Annotated[str, typer.Argument(help="Id or name.")]) -> None:
    """Show a device profile as it was written."""
    found = session.client.find("devices", device)
    session.answer(found, lambda console: console.print_json(json.dumps(found)))


@verb(app, "push")
def push(session: Session, file: FileArgument) -> None:
    """Add a device profile from a JSON or YAML file."""
    device = session.client.push_device(read_record(file))

    def draw(console: Console) -> None:
        console.print(f"{device['id']}  {device['name']}  revision {device['revision']}")

    session.answer(device, draw)


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML mapping. Raises typer.BadParameter (wrong usage) when the file holds anything else."""
    import yaml

    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} is neither JSON nor YAML: {error}") from error
    if not isinstance(record, dict):
        raise typer.BadParameter(f"{path} holds {type(record).__name__}, not a mapping")
    return record


def pairs_text(profile: Any) -> str:
    """Return the legal bit pairs of a profile, shortest first."""
    pairs = {tuple(pair) for pairs in profile["rules"]["pairs"].values() for pair in pairs}
    return " ".join(f"{w}x{a}" for w, a in sorted(pairs))


def _row(device: Any) -> tuple[object, ...]:
    profile = device["profile"]
    memory = amount("weight_bytes", profile["memory"]["activation_pool"].get("bytes"))
    return device["id"], device["name"], device["revision"], pairs_text(profile), memory
