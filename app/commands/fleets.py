"""tightfit fleet: run, show, list, cancel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.base import Session, usage, verb
from app.commands.devices import read_record
from app.commands.limits import parse_limit, parse_methods
from app.commands.show import listing, progress_line, table
from app.domain.words import exit_code as exit_code_of

if TYPE_CHECKING:
    from rich.console import Console

    from app.client import Client

app = typer.Typer(no_args_is_help=True, help="Fleets, one search for several devices: run, show, list, cancel.")

FleetArgument = Annotated[str, typer.Argument(help="Id or name of the fleet.")]
HEADS = ("device", "search", "outcome", "progress", "evaluations")


@dataclass(frozen=True)
class Request:
    """The options of `fleet run`; they go over what the file says."""

    file: Annotated[
        Path | None, typer.Option("-f", "--file", exists=True, dir_okay=False, help="The request as YAML or JSON.")
    ] = None
    member: Annotated[
        list[str] | None,
        typer.Option(help="A device with its limits: 'stm32h7: weight_bytes<=64kB, bops<=1/16'; repeatable."),
    ] = None
    name: Annotated[str | None, typer.Option(help="Name of the fleet.")] = None
    model: Annotated[str | None, typer.Option(help="Id or name of the model.")] = None
    data: Annotated[str | None, typer.Option(help="Id or name of the dataset.")] = None
    no_data: Annotated[bool, typer.Option("--no-data", help="There are no data: inputs are drawn.")] = False
    metric: Annotated[str | None, typer.Option(help="What counts, as for a search.")] = None
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of the first member.")] = None
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="Train every member's best, as for a search; repeatable.")
    ] = None
    share: Annotated[float | None, typer.Option(help="Largest share of its evaluations for each other one.")] = None


@verb(app, "run")
def run(
    session: Session,
    request: Request,
    detach: Annotated[bool, typer.Option("--detach", help="Queue it and return at once.")] = False,
) -> None:
    """Fit one network into several devices: the first measures, the others use what it found.

    Leaves with 0 when every device got a candidate that keeps every limit, 3 when one did not, 1 on failure.
    """
    body = merged(read_record(request.file) if request.file else {}, request)
    fleet = session.client.post("/v1/fleets", resolved(session.client, body))
    if detach:
        session.answer(fleet, lambda console: console.print(fleet["id"]))
        return
    _follow(session, fleet["id"])


@verb(app, "watch")
def watch(session: Session, fleet: FleetArgument) -> None:
    """Follow a fleet to its end; exit code as for run."""
    _follow(session, session.client.find("fleets", fleet)["id"])


@verb(app, "show")
def show(session: Session, fleet: FleetArgument) -> None:
    """Show where every member of a fleet stands."""
    found = session.client.find("fleets", fleet)
    session.answer(found, lambda console: draw(console, found))


@verb(app, "list")
def list_fleets(session: Session) -> None:
    """List the fleets, newest first."""
    fleets = list(session.client.items("/v1/fleets"))
    session.answer(fleets, listing(("id", "name", "state", "devices"), fleets, _row))


@verb(app, "cancel")
def cancel(session: Session, fleet: FleetArgument) -> None:
    """Stop every member that is not finished; what was measured so far is kept."""
    found = session.client.post(f"/v1/fleets/{session.client.find('fleets', fleet)['id']}/cancel")
    session.answer(found, lambda console: draw(console, found))


def merged(body: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """Return the file's record with the options over it. Raises typer.BadParameter where something is missing."""
    given: dict[str, Any] = {
        "name": request.name,
        "model": request.model,
        "data": request.data,
        "share": request.share,
        "metric": request.metric,
        "members": request.member,
        "methods": _methods(request.methods or ()) or None,
    }
    whole: dict[str, Any] = {**body, **{key: value for key, value in given.items() if value is not None}}
    if request.trials is not None:
        whole["search"] = {**(whole.get("search") or {}), "trials": request.trials}
    if request.no_data and (whole.get("data") or whole.get("dataset")):
        raise typer.BadParameter("--no-data and data: name one of them")
    for option, key, other in (("--model", "model", "model_id"), ("--data", "data", "dataset")):
        whole[key] = whole.get(key) or whole.pop(other, None) or (key == "data" and request.no_data)
        if not whole[key]:
            raise typer.BadParameter(f"{option} is missing; name it as an option or in the file")
        whole.pop(other, None)
    if not whole.get("members"):
        raise typer.BadParameter("--member is missing: say at least one, such as --member 'stm32h7: bops<=1/16'")
    members = [parse_member(item) for item in whole["members"]]
    return {**whole, "name": whole.get("name") or "fleet", "members": members}


def _methods(texts: Iterable[str]) -> list[dict[str, Any]]:
    with usage():
        return parse_methods(texts)


def parse_member(item: Any) -> dict[str, Any]:
    """Return a member from 'device: limit, limit', or from a mapping whose limits may be texts."""
    with usage():
        if isinstance(item, str):
            device, _, limits = item.partition(":")
            return {"device": device.strip(), "limits": [parse_limit(text.strip()) for text in limits.split(",")]}
        told = [parse_limit(limit) if isinstance(limit, str) else limit for limit in item.get("limits", [])]
    return {**item, "limits": told}


def resolved(client: Client, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of POST /v1/fleets: names looked up, ids in their place (of a device, its revision)."""
    data = body["data"] if isinstance(body["data"], Mapping) else {"all": body["data"]}
    found = (
        {} if body["data"] is True else {role: client.find("datasets", str(name))["id"] for role, name in data.items()}
    )
    rest = {key: value for key, value in body.items() if key not in ("model", "data", "members")}
    return {
        **rest,
        "model_id": client.find("models", str(body["model"]))["id"],
        "dataset": found or None,
        "members": [_with_device(client, item) for item in body["members"]],
    }


def _with_device(client: Client, member: Mapping[str, Any]) -> dict[str, Any]:
    device = client.find("devices", str(member.get("device") or member.get("device_id")))
    rest = {key: value for key, value in member.items() if key != "device"}
    return {**rest, "device_id": f"{device['name']}@{device['revision']}"}


def draw(console: Console, fleet: Mapping[str, Any]) -> None:
    """Print a fleet's members as a table."""
    console.print(f"{fleet['id']}  {fleet['name']}  {fleet['state']}")
    console.print(table("", HEADS, [_cells(item) for item in fleet["members"]]))


def exit_code(fleet: Mapping[str, Any]) -> int:
    """Return 0 where every member is feasible, 1 where one failed or found nothing, else 3."""
    codes = {exit_code_of(item) for item in fleet["members"]}
    return 1 if 1 in codes else max(codes)


def _follow(session: Session, id: str) -> None:
    try:
        for item in session.client.get(f"/v1/fleets/{id}")["members"]:
            session.client.wait_search(item["search_id"])
    except KeyboardInterrupt:
        session.console.print(f"detached; the searches go on: tightfit fleet watch {id}")
        raise typer.Exit(130) from None
    fleet = session.client.get(f"/v1/fleets/{id}")
    session.answer(fleet, lambda console: draw(console, fleet))
    raise typer.Exit(exit_code(fleet))


def _cells(item: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        item["device_id"],
        item["search_id"],
        item["outcome"] or "–",
        progress_line(item),
        item["evaluations"],
    )


def _row(fleet: Any) -> tuple[object, ...]:
    return fleet["id"], fleet["name"], fleet["state"], ", ".join(item["device_id"] for item in fleet["members"])
