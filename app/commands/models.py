"""tightfit model: push, weights, list, show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.base import Session, verb
from app.commands.show import listing, refusal, table, upload_bar
from app.domain.words import amount

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Networks: upload, list, look inside.")

FileArgument = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)]


@verb(app, "push")
def push(
    session: Session,
    file: FileArgument,
    name: Annotated[str | None, typer.Option(help="Name of the model (default: the file's).")] = None,
    format: Annotated[str | None, typer.Option(help="onnx or pt2 (default: told by the content).")] = None,
) -> None:
    """Upload an ONNX or torch.export .pt2 file and wait until it is read."""
    with upload_bar(session.console, file.name) as progress:
        model = session.client.push_model(file, name, format, progress)
    session.answer(model, lambda console: _summary(console, model))


@verb(app, "weights")
def weights(
    session: Session,
    model: Annotated[str, typer.Argument(help="Id or name of the model the weights are for.")],
    file: FileArgument,
    name: Annotated[str | None, typer.Option(help="Name of the new model (default: the base's).")] = None,
) -> None:
    """Upload new weights of a model, a safetensors file: a new model with the same graph; wait until it is read."""
    base = session.client.find("models", model)
    with upload_bar(session.console, file.name) as progress:
        made = session.client.push_weights(base["id"], file, name, progress)
    session.answer(made, lambda console: _summary(console, made))


@verb(app, "list")
def list_models(session: Session) -> None:
    """List the models."""
    models = list(session.client.items("/v1/models"))
    columns = ("id", "name", "state", "format", "file", "parameters", "base")
    session.answer(models, listing(columns, models, _row))


@verb(app, "show")
def show(session: Session, model: Annotated[str, typer.Argument(help="Id or name.")]) -> None:
    """Show the layers and channel groups of a model."""
    found = session.client.find("models", model)
    session.answer(found, lambda console: _details(console, found))


def _row(model: Any) -> tuple[object, ...]:
    parameters = (model.get("graph") or {}).get("parameters", model.get("parameters"))
    size = amount("weight_bytes", model.get("bytes"))
    facts = model.get("format") or "–", size, amount("macs", parameters), model.get("base_id") or "–"
    return model["id"], model["name"], model["state"], *facts


def _summary(console: Console, model: Any) -> None:
    graph = model["graph"]
    console.print(f"{model['id']}  {model['name']}  {model['state']}", style="bold")
    if model.get("base_id"):
        console.print(f"weights version of {model['base_id']}")
    shape = "x".join(map(str, graph["input_shape"]))
    groups = [group for group in graph["groups"] if group["frozen"] is None]
    console.print(
        f"{amount('macs', graph['parameters'])} parameters in {len(graph['layers'])} layers, input {shape}, "
        f"{len(groups)} of {len(graph['groups'])} channel groups prunable"
    )


def _details(console: Console, model: Any) -> None:
    if model.get("problem"):
        refusal(console, model["problem"])
    if not model.get("graph"):
        return
    _summary(console, model)
    layers = [
        (item["name"], item["kind"], "x".join(map(str, item["weight_shape"])), item["positions"], item["groups"])
        for item in model["graph"]["layers"]
    ]
    console.print(table("Layers", ("layer", "kind", "weight", "positions", "groups"), layers))
    columns = ("group", "channels", "producers", "consumers", "state")
    console.print(table("Channel groups", columns, [_group_row(group) for group in model["graph"]["groups"]]))


def _group_row(group: Any) -> tuple[object, ...]:
    """Return a channel group's cells; a frozen one says why it is."""
    producers, consumers = (", ".join(group[key]) or "–" for key in ("producers", "consumers"))
    state = "prunable" if group["frozen"] is None else f"frozen: {group['frozen']}"
    return group["id"], group["channels"], producers, consumers, state
