"""tightfit apply: a candidate made again from its config on this machine, without a service."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from app.commands.base import verb
from app.domain.opsets import DEFAULT, LOWEST


@dataclass(frozen=True)
class Inputs:
    """The files that the candidate came from."""

    model: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The network it came from.")]
    data: Annotated[
        list[str] | None,
        typer.Option(help="Its dataset: FILE, or ROLE=FILE for each of several; none where the search had none."),
    ] = None
    weights: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The weights' file, of a weights version.")
    ] = None


def apply(
    config: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The candidate's config (YAML).")],
    inputs: Inputs,
    out: Annotated[Path, typer.Option("-o", "--out", file_okay=False, help="Folder to write to.")] = Path(),
    opset: Annotated[
        int | None, typer.Option(min=LOWEST, max=DEFAULT, help="Another ONNX opset than delivered.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Go on with files of other digests.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print pure JSON on stdout.")] = False,
) -> None:
    """Make a candidate again from its config: the same files, byte for byte (needs the worker's packages).

    Exit codes: 0 as delivered, 3 verified but other bytes, 1 refused or not verified.
    """
    command = [sys.executable, "-m", "worker.apply", str(config), "--model", str(inputs.model), "--out", str(out)]
    for item in inputs.data or ():
        command += ["--data", item]
    command += ["--weights", str(inputs.weights)] if inputs.weights is not None else []
    command += ["--opset", str(opset)] if opset is not None else []
    flags = [name for name, is_on in (("--force", force), ("--json", as_json)) if is_on]
    # it takes this process's place: what compresses is never loaded by the command line itself
    os.execv(sys.executable, [*command, *flags])


def register(app: typer.Typer) -> None:
    """Add the command."""
    verb(app, "apply")(apply)
