"""tightfit device: list, show, new, push."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.base import Session, print_json, verb
from app.commands.devicesheet import pairs_text, sheet
from app.commands.models import FileArgument
from app.commands.show import listing
from app.domain.words import amount

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Device profiles: list, look inside, add your own.")
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmg]?)(?:i?b)?")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
TEMPLATE = """\
name: {name}
unit: mcu  # cpu, gpu, npu, mcu or dsp
compute:  # peak giga-MACs per second by pair; add "eff" where you know what is attained
  - {{w: 8, a: 8, gmacs: 4.0}}
memory:  # bytes: null where memory is no limit; gbps: gigabytes per second
  activation_pool: {{bytes: 262144, gbps: 2.0}}
  weight_store: {{bytes: 1048576, gbps: 0.4}}
rules:
  pairs: {{default: [[8, 8]]}}  # legal [weight bits, activation bits]; per kind: conv, depthwise, linear
  channel_multiple: {{default: 8}}  # channels are padded to this before time is counted
"""


@dataclass(frozen=True)
class Wanted:
    """Which devices to list."""

    unit: Annotated[str | None, typer.Option(help="Only cpu, gpu, npu, mcu or dsp.")] = None
    bits: Annotated[int | None, typer.Option(help="Only devices with a legal pair of this many weight bits.")] = None
    max_memory: Annotated[
        str | None, typer.Option(help="Only devices whose activation memory is at most this, like 512k.")
    ] = None
    all_revisions: Annotated[bool, typer.Option("--all", help="Every revision, not only the newest.")] = False

    def choose(self, devices: Sequence[Any]) -> list[Any]:
        """Return the devices wanted, built-in ones first. Raises typer.BadParameter for a size that is none."""
        most = None if self.max_memory is None else _bytes(self.max_memory)
        newest: dict[str, int] = {}
        for device in devices:
            newest[device["name"]] = max(device["revision"], newest.get(device["name"], 0))
        found = [item for item in devices if self.all_revisions or item["revision"] == newest[item["name"]]]
        found = [item for item in found if self._fits(item["profile"], most)]
        return sorted(found, key=lambda item: (not item["builtin"], item["name"], -item["revision"]))

    def _fits(self, profile: Any, most: float | None) -> bool:
        capacity = profile["memory"]["activation_pool"].get("bytes")
        widths = {w for pairs in profile["rules"]["pairs"].values() for w, _ in pairs}
        return (
            (self.unit is None or profile.get("unit") == self.unit)
            and (self.bits is None or self.bits in widths)
            and (most is None or (capacity is not None and capacity <= most))
        )


@verb(app, "list")
def list_devices(session: Session, wanted: Wanted) -> None:
    """List the device profiles, built-in ones first."""
    devices = wanted.choose(list(session.client.items("/v1/devices")))
    session.answer(devices, listing(("id", "name", "revision", "unit", "pairs (w x a)", "memory"), devices, _row))


@verb(app, "show")
def show(session: Session, device: Annotated[str, typer.Argument(help="Name, name@revision or id.")]) -> None:
    """Show a device profile: rules, rates, memory, costs, and where each figure comes from."""
    found = session.client.find("devices", device)
    session.answer(found, lambda console: sheet(console, found))


@verb(app, "new")
def new(session: Session, name: Annotated[str, typer.Argument(help="Name of the new profile.")]) -> None:
    """Print a profile of ten lines to start from: fill in your figures, then push it."""
    if not NAME.fullmatch(name):
        raise typer.BadParameter(f"{name!r}: lower-case letters, digits, '.', '_' and '-', at most 64")
    text = TEMPLATE.format(name=name)
    if session.as_json:
        import yaml

        print_json(yaml.safe_load(text))
    else:
        typer.echo(text, nl=False)


@verb(app, "refit")
def refit(session: Session, device: Annotated[str, typer.Argument(help="Name, name@revision or id.")]) -> None:
    """Scale a profile's latencies to what was measured with it; the result is its next revision."""
    found = session.client.refit_device(session.client.find("devices", device)["id"])

    def draw(console: Console) -> None:
        error = 100 * found["profile"]["evidence"]["error_p90"]
        console.print(f"{found['id']}  {found['name']}  revision {found['revision']}  error p90 {error:.0f} %")

    session.answer(found, draw)


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


def _row(device: Any) -> tuple[object, ...]:
    profile = device["profile"]
    memory = amount("weight_bytes", profile["memory"]["activation_pool"].get("bytes"))
    pairs = pairs_text(profile)
    return device["id"], device["name"], device["revision"], profile.get("unit", "cpu"), pairs, memory


def _bytes(text: str) -> float:
    match = SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size: write bytes, or 512k, 8M, 1G (powers of 1024)")
    return float(match[1]) * 1024.0 ** " kmg".index(match[2] or " ")
