"""Logs of the service and its workers: lines for people, or JSON (`TIGHTFIT_LOG_FORMAT=json`), with ids bound to them.

What is bound in a context (`bind`) is in every line that is logged there: request_id, search_id, trial.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from app.settings import Settings

_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.stdlib.ExtraAdder(),
]


def configure(settings: Settings) -> None:
    """Send the log of this process to stderr in the format of the settings."""
    last: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if settings.log_format == "json":
        last += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        last += [structlog.dev.ConsoleRenderer(colors=False)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_SHARED, processors=last))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    quiet = ["alembic", "httpx"] if settings.log_format == "json" else ["alembic", "httpx", "tightfit.access"]
    for name in quiet:
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def bind(**ids: object) -> Iterator[None]:
    """Put ids into every line that is logged inside."""
    with structlog.contextvars.bound_contextvars(**ids):
        yield
