"""The command line: `tightfit NOUN VERB`. Starts quickly; heavy modules are imported by the verbs that need them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from app.commands import (
    agent,
    agents,
    apply,
    calibrate,
    candidates,
    data,
    devices,
    fleets,
    history,
    keys,
    models,
    schedules,
    searches,
    service,
)

app = typer.Typer(
    name="tightfit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fit a trained network into a device's budget. Exit codes: 0 feasible, 3 best effort, 1 error, 2 wrong usage.",
)
app.add_typer(models.app, name="model")
app.add_typer(data.app, name="data")
calibrate.register(devices.app)
app.add_typer(devices.app, name="device")
app.add_typer(agents.app, name="agents")
app.add_typer(searches.app, name="search")
app.add_typer(fleets.app, name="fleet")
app.add_typer(candidates.app, name="candidate")
app.add_typer(candidates.artefacts, name="artefact")
app.add_typer(schedules.app, name="schedule")
app.add_typer(keys.app, name="key")
app.add_typer(keys.app, name="keys", hidden=True)
app.command("agent")(agent.agent)
apply.register(app)
service.register(app)
history.register(app)

DataDir = Annotated[Path | None, typer.Option(help="Data folder (env TIGHTFIT_DATA_DIR).")]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (env TIGHTFIT_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port (env TIGHTFIT_PORT).")] = None,
    data_dir: DataDir = None,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes beside the service.")] = 1,
) -> None:
    """Run the service, the dashboard and a worker; prints the dashboard's link. Ctrl-C stops them."""
    given = {"HOST": host, "PORT": port, "DATA_DIR": data_dir}
    environment = {f"TIGHTFIT_{key}": str(value) for key, value in given.items() if value is not None}
    _become(["-X", "no_debug_ranges", "-m", "app.supervisor", "--workers", str(workers)], environment)


@app.command()
def worker(
    data_dir: DataDir = None,
    executor_id: Annotated[
        str | None, typer.Option(help="Stable id of this worker; two workers need two (env TIGHTFIT_EXECUTOR_ID).")
    ] = None,
) -> None:
    """Run one worker in the foreground (the service may run elsewhere on the same database)."""
    given = {"DATA_DIR": data_dir, "EXECUTOR_ID": executor_id}
    _become(["-m", "worker"], {f"TIGHTFIT_{key}": str(value) for key, value in given.items() if value is not None})


def _become(options: list[str], environment: dict[str, str]) -> NoReturn:
    """Let another Python take this process's place: signals reach it, and the command line's memory is free."""
    import os
    import sys

    os.execve(sys.executable, [sys.executable, *options], {**os.environ, **environment})


def main() -> None:
    """Run the command line."""
    app()
