"""tightfit doctor, backup, restore, sweep: looked at and done on the machine with the data folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from app.settings import Settings

DataDir = Annotated[Path | None, typer.Option(help="Data folder (env TIGHTFIT_DATA_DIR).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(doctor)
    app.command()(backup)
    app.command()(restore)
    app.command()(sweep)


def doctor(
    data_dir: DataDir = None,
    deep: Annotated[bool, typer.Option("--deep", help="Hash every stored file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with a service: disk, database, schema, workers, queues, files. Changes nothing.

    Leaves with 1 where something is bad.
    """
    from app.doctor import examine

    found = examine(_settings(data_dir), deep)
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in found]))
    else:
        for item in found:
            typer.echo(f"{item.verdict:<5} {item.name:<16} {item.detail}")
    raise typer.Exit(1 if any(item.verdict == "bad" for item in found) else 0)


def backup(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Where backups are kept; they share their files.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Add a backup of the database and all files it refers to; the service may run meanwhile."""
    from app.store.backup import BackupError
    from app.store.backup import backup as make

    try:
        target, manifest = make(_settings(data_dir), folder)
    except BackupError as error:
        _fail(error)
    _answer({"backup": str(target), "files": len(manifest["blobs"])}, f"{target}", as_json)


def restore(
    source: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A backup, or a folder of them.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Bring a backup (of a folder the newest) into an empty data folder; the next start upgrades an older schema."""
    from app.store.backup import BackupError, newest
    from app.store.backup import restore as bring

    try:
        settings, chosen = _settings(data_dir), newest(source)
        manifest = bring(settings, chosen)
    except BackupError as error:
        _fail(error)
    _answer(
        {"restored": str(chosen), "files": len(manifest["blobs"])},
        f"{settings.data_dir}: restored {chosen.name}",
        as_json,
    )


def sweep(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Remove stored files that nothing refers to, and events and audit entries that are older than is to be kept.

    Workers do this every hour.
    """
    from app.store.blobs import Blobs
    from app.store.engine import connect
    from app.store.notices import prune
    from app.store.sweep import sweep as run

    settings = _settings(data_dir)
    database = connect(settings.database_url)
    found = asdict(run(database, Blobs(settings.blob_dir), settings.data_dir))
    with database.writing() as session:
        found["old"] = prune(session, settings.notices_s, settings.audit_s)
    database.dispose()
    _answer(found, ", ".join(f"{key} {value}" for key, value in found.items()), as_json)


def _settings(data_dir: Path | None) -> Settings:
    from app.settings import Settings

    return Settings() if data_dir is None else Settings(data_dir=data_dir)


def _answer(found: dict[str, Any], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(found) if as_json else text)


def _fail(error: Exception) -> NoReturn:
    typer.echo(str(error), err=True)
    raise typer.Exit(1)
