"""tightfit agent: the program that measures on this machine for a service elsewhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def agent(
    url: Annotated[str | None, typer.Option(help="Address of the service (known once enrolled).")] = None,
    code: Annotated[str | None, typer.Option(help="One-time code of: tightfit agents enrol.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of this agent (default: the host's).")] = None,
    file: Annotated[Path | None, typer.Option(help="Where the token is kept (env TIGHTFIT_AGENT_FILE).")] = None,
    once: Annotated[bool, typer.Option("--once", help="End when there is nothing to do.")] = False,
) -> None:
    """Measure networks on this machine for a service elsewhere (needs ONNX Runtime, opens no port)."""
    command = [sys.executable, "-m", "worker.hardware.agent"]
    for option, value in (("--url", url), ("--code", code), ("--name", name), ("--file", file)):
        if value is not None:
            command += [option, str(value)]
    # the agent takes this process's place, so that signals of a container or a supervisor reach it
    os.execv(sys.executable, [*command, *(["--once"] if once else [])])
