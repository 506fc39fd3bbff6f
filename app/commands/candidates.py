"""tightfit candidate and tightfit artefact: what a search found, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.base import ERROR, Session, verb
from app.commands.show import candidate_summary, table, upload_bar
from app.domain.artefacts import suffix_of
from app.domain.opsets import DEFAULT, LOWEST
from app.domain.words import amount, percent

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Candidates: show, why, export, report.")
artefacts = typer.Typer(no_args_is_help=True, help="Artefacts: download with a digest check.")


@verb(app, "show")
def show(
    session: Session,
    candidate: Annotated[str, typer.Argument(help="Id of the candidate.")],
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer.")] = False,
) -> None:
    """Show a candidate: budget table, quality, verification, artefacts."""
    found = session.client.get(f"/v1/candidates/{candidate}")

    def draw(console: Console) -> None:
        candidate_summary(console, found)
        if layers:
            console.print(layer_table(found))

    session.answer(found, draw)


@verb(app, "why")
def why(
    session: Session,
    candidate: Annotated[str, typer.Argument(help="Id of the candidate.")],
    most: Annotated[int, typer.Option("--most", min=1, help="Show so many operations, slowest first.")] = 15,
) -> None:
    """Say why a candidate is not faster: what its time goes to, and the changes that would save most."""
    found = session.client.why(candidate)
    session.answer(found, lambda console: why_summary(console, found, most))


@verb(app, "export")
def export(
    session: Session,
    candidate: Annotated[str, typer.Argument(help="Id of the candidate.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", file_okay=False, help="Download into this folder.")] = None,
    opset: Annotated[
        int | None,
        typer.Option(min=LOWEST, max=DEFAULT, help="ONNX opset of the files; made anew where it is another."),
    ] = None,
) -> None:
    """Export a candidate, verify it, and download its files if a folder is named."""
    found = session.client.export_candidate(candidate, opset=opset)
    paths = [str(_download(session, artefact, out)) for artefact in found["artefacts"]] if out else []

    def draw(console: Console) -> None:
        candidate_summary(console, found)
        for path in paths:
            console.print(f"  wrote {path}")

    session.answer({**found, "files": paths}, draw)
    if found["verification"] != "verified":
        raise typer.Exit(ERROR)


@verb(app, "report")
def report(
    session: Session,
    candidate: Annotated[str, typer.Argument(help="Id of the candidate.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File or folder to write to.")] = None,
) -> None:
    """Download the report of an exported candidate: one HTML file that any browser shows, offline too."""
    found = session.client.report(candidate)
    path = _download(session, found, out)
    session.answer({**found, "path": str(path)}, lambda console: console.print(f"wrote {path}"))


@verb(artefacts, "get")
def get(
    session: Session,
    artefact: Annotated[str, typer.Argument(help="Id of the artefact.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File or folder to write to.")] = None,
) -> None:
    """Download an artefact; the file appears only when its SHA-256 is right."""
    found = session.client.get(f"/v1/artefacts/{artefact}")
    path = _download(session, found, out)
    session.answer({**found, "path": str(path)}, lambda console: console.print(f"wrote {path}"))


def layer_table(candidate: Any) -> Any:
    """Return the per-layer table of a candidate: kept channels, bits, MACs, bytes, modelled time."""
    rows = [
        (
            layer["name"],
            f"{layer['out_channels']}/{layer['full_out_channels']}",
            layer["weight_bits"],
            layer["input_bits"],
            amount("macs", layer["macs"]),
            amount("weight_bytes", layer["weight_bytes"]),
            amount("latency_ms", layer["latency_ms"]),
        )
        for layer in candidate.get("layers") or []
    ]
    return table("Layers", ("layer", "channels", "w bits", "a bits", "MACs", "bytes", "latency"), rows)


def why_summary(console: Console, why: Any, most: int) -> None:
    """Print the verdict, the slowest operations by cause, and the changes that would save most."""
    console.print(f"{why['verdict']} ({why['evidence']})", highlight=False)
    if why["measured"]:
        words = "not faster" if why["measured"]["is_slower"] else "faster"
        times = [amount("latency_ms", why["measured"][name]) for name in ("compressed_ms", "float_ms")]
        console.print(f"measured on the worker's host: {words}, {times[0]} against {times[1]}", highlight=False)
    rows = [
        (
            op["name"],
            op["kind"],
            amount("latency_ms", op["latency_ms"]),
            percent(op["share"], 1),
            op["bound"],
            amount("latency_ms", op["references"]["float"]),
        )
        for op in why["operations"][:most]
    ]
    console.print(table("Operations", ("operation", "kind", "time", "share", "bound by", "float"), rows))
    for change in why["changes"]:
        console.print(f"  saves {amount('latency_ms', change['saving_ms'])}: {change['text']}", highlight=False)


def _download(session: Session, artefact: Any, out: Path | None) -> Path:
    name = Path(artefact.get("filename") or artefact["id"] + suffix_of(artefact["kind"])).name
    target = Path(name) if out is None else out / name if out.is_dir() or not out.suffix else out
    with upload_bar(session.console, target.name) as progress:
        return session.client.download(artefact["id"], target, progress)
