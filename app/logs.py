"""Logs of the service and its workers: lines for people, or JSON (`TIGHTFIT_LOG_FORMAT=json`), with ids bound to them.

What is bound in a context (`bind`) is in every line that is logged there: request_id, search_id, trial. Tracebacks name
places, never the values there: those may be keys, or what users uploaded.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from app.settings import Settings

_bound: ContextVar[dict[str, object]] = ContextVar("bound", default={})  # noqa: B039 - replaced, never changed
_OWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}
"""What every record has; the rest was given by `extra`."""


class Lines(logging.Formatter):
    """A line for people: time, level, event, logger, and what is bound; a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        found = facts(record)
        known = [found.pop(name) for name in ("timestamp", "level", "event", "logger")]
        below = found.pop("exception", None)
        told = " ".join(f"{name}={value}" for name, value in found.items())
        line = f"{known[0]} [{known[1]:<8}] {known[2]:<30} [{known[3]}] {told}".rstrip()
        return line if below is None else f"{line}\n{below}"


class Objects(logging.Formatter):
    """A JSON object in a line; what is no JSON is told as text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return json.dumps(facts(record), default=str)


def facts(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a record tells: event, what is bound, level, logger, timestamp, its extras, and an exception."""
    found: dict[str, Any] = {
        "event": record.getMessage(),
        **_bound.get(),
        "level": record.levelname.lower(),
        "logger": record.name,
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
        **{name: value for name, value in vars(record).items() if name not in _OWN},
    }
    if record.exc_info and record.exc_info[0] is not None:
        found["exception"] = logging.Formatter().formatException(record.exc_info)
    return found


def configure(settings: Settings) -> None:
    """Send the log of this process to stderr in the format of the settings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Objects() if settings.log_format == "json" else Lines())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    quiet = ["alembic", "httpx"] if settings.log_format == "json" else ["alembic", "httpx", "tightfit.access"]
    for name in quiet:
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def bind(**ids: object) -> Iterator[None]:
    """Put ids into every line that is logged inside."""
    token = _bound.set({**_bound.get(), **ids})
    try:
        yield
    finally:
        _bound.reset(token)
