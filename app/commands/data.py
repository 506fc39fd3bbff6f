"""tightfit data: make (image folders and arrays to one npz file), push, list."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.base import Session, usage, verb
from app.commands.models import FileArgument
from app.commands.show import listing, upload_bar
from app.domain.words import amount

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Datasets: make, push, list.")


@dataclass(frozen=True)
class Spec:
    """How the stored numbers become the network's inputs, and what the dataset is for."""

    layout: Annotated[str | None, typer.Option(help="NCHW, NHWC, NHW, NC or NCL.")] = None
    scale: Annotated[float | None, typer.Option(help="Factor on stored values, such as 0.00392157 for bytes.")] = None
    mean: Annotated[str | None, typer.Option(help="Per-channel mean after scaling: 0.49,0.48,0.45.")] = None
    std: Annotated[str | None, typer.Option(help="Per-channel standard deviation after scaling.")] = None
    role: Annotated[str | None, typer.Option(help="calibration, evaluation, holdout or all.")] = None
    split_seed: Annotated[int | None, typer.Option(help="Seed of the 20/40/40 split.")] = None

    def body(self) -> dict[str, Any]:
        """Return the declared parts as the service reads them. Raises typer.BadParameter on a malformed list."""
        given = {
            "layout": self.layout,
            "scale": self.scale,
            "mean": numbers(self.mean),
            "std": numbers(self.std),
            "role": self.role,
            "split_seed": self.split_seed,
        }
        return {key: value for key, value in given.items() if value is not None}


@verb(app, "push")
def push(
    session: Session,
    file: FileArgument,
    spec: Spec,
    name: Annotated[str | None, typer.Option(help="Name of the dataset (default: the file's).")] = None,
) -> None:
    """Upload an npz or safetensors file with x and, for accuracy, y."""
    body = {**recorded_spec(file), **spec.body()}
    with upload_bar(session.console, file.name) as progress:
        dataset = session.client.push_dataset(file, name, body, progress)

    def draw(console: Console) -> None:
        console.print(f"{dataset['id']}  {dataset['name']}  {dataset['state']}", style="bold")
        console.print(f"{dataset.get('rows')} rows of shape {dataset.get('shape')}, {dataset.get('classes')} classes")

    session.answer(dataset, draw)


@verb(app, "list")
def list_datasets(session: Session) -> None:
    """List the datasets."""
    datasets = list(session.client.items("/v1/datasets"))
    session.answer(datasets, listing(("id", "name", "state", "rows", "shape", "classes", "file"), datasets, _row))


@verb(app, "make")
def make(
    session: Session,
    source: Annotated[Path, typer.Argument(exists=True, help="Folder with one sub-folder per class, .npy or .npz.")],
    out: Annotated[Path, typer.Option("-o", "--out", dir_okay=False, help="File to write.")] = Path("dataset.npz"),
    labels: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Labels as .npy.")] = None,
    size: Annotated[str | None, typer.Option(help="Resize pictures to WIDTHxHEIGHT.")] = None,
    gray: Annotated[bool, typer.Option("--gray", help="One channel instead of three.")] = False,
) -> None:
    """Write one dataset file from a picture folder (a sub-folder per class) or from arrays."""
    from app.commands import datamake

    with usage():
        if source.is_dir():
            dataset = datamake.from_folder(source, datamake.parse_size(size), gray)
        else:
            dataset = datamake.from_arrays(source, labels)
        summary = datamake.write(dataset, out)
    session.answer(summary, lambda console: console.print(datamake.describe(summary)))


def numbers(text: str | None) -> list[float] | None:
    """Return comma-separated numbers, or None for None."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of numbers") from error


def recorded_spec(file: Path) -> dict[str, Any]:
    """Return the declaration that `data make` left beside a file, if there is one."""
    beside = file.with_suffix(file.suffix + ".json")
    if not beside.is_file():
        return {}
    spec = json.loads(beside.read_text(encoding="utf-8")).get("spec", {})
    return dict(spec)


def _row(dataset: Any) -> tuple[object, ...]:
    shape = "x".join(map(str, dataset.get("shape") or [])) or "–"
    size = amount("weight_bytes", dataset.get("bytes"))
    rows, classes = dataset.get("rows") or "–", dataset.get("classes") or "–"
    return dataset["id"], dataset["name"], dataset["state"], rows, shape, classes, size
