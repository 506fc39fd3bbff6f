"""Requests generated from the OpenAPI document, legal and illegal ones; the answers are held against it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode, checks
from schemathesis.python import asgi

from app.main import create_app
from app.settings import Settings
from app.store import query
from app.store.tables import Dataset, Model
from tests.app.uploaded import put_ready

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
QUICK = {"event_poll_s": 0.01, "event_stream_s": 0.05, "upload_window_s": 30.0}
SKIPPED = "jobs:pull$"
"""Waits for a job as long as it is told to."""
BARE = ("head", "options")
"""Methods whose answers have no body to hold against anything."""


schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")


@dataclass
class Tally:
    """What was sent and what came back."""

    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)

    def note(self, label: str, response: Any) -> None:
        """Count an answer."""
        self.requests += 1
        self.statuses[response.status_code] += 1
        self.operations[label] += 1
        if response.status_code >= 400 and response.content:
            self.problems[str(response.json()["type"]).removeprefix("/problems/")] += 1


@contextmanager
def service() -> Iterator[tuple[FastAPI, str]]:
    """Run the application on a fresh folder with a network and a dataset in it; yield it and its key."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            data_dir=Path(folder), disk_floor_bytes=0, failed_logins_per_minute=10**9, requests_per_s=0, **QUICK
        )
        application = create_app(settings)
        with asgi.get_client(application):
            put_ready(application.state.service)
            yield application, settings.key_file.read_text().strip()


def operations(application: FastAPI) -> list[Any]:
    """Return the document's operations."""
    found = [result.ok() for result in _schema(application).get_all_operations()]
    return [operation for operation in found if operation.method.lower() not in BARE]


def _schema(application: FastAPI) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", application).exclude(path_regex=SKIPPED)


class Sender:
    """Sends generated requests to a service and counts what comes back."""

    def __init__(self, application: FastAPI, key: str, seed: int = 0) -> None:
        self.tally = Tally()
        self._application, self._seed, self._again = application, seed, True
        self._headers = {"Authorization": f"Bearer {key}"}
        self._known: dict[str, str] = {}
        for noun, table in (("models", Model), ("datasets", Dataset)):
            with application.state.service.database.reading() as session:
                self._known[f"/v1/{noun}/{{id}}"] = query.page(session, table, 1)[0].id

    def reseed(self, seed: int) -> None:
        """Generate other requests from here on."""
        self._seed, self._again = seed, False

    def each(self, examples: int) -> None:
        """Send `examples` requests per operation and kind (legal, illegal)."""
        with asgi.get_client(self._application) as client:
            for operation in operations(self._application):
                for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                    self._send(operation, mode, client, examples)

    def _send(self, operation: Any, mode: GenerationMode, client: Any, examples: int) -> None:
        @hypothesis.seed(self._seed)
        @hypothesis.settings(
            max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def one(case: Any) -> None:
            if self.tally.requests % 2 and operation.path in self._known and operation.method.upper() != "DELETE":
                case.path_parameters["id"] = self._known[operation.path]
            self._judge(case, case.call(session=client, headers=self._headers, timeout=60))

        with suppress(hypothesis.errors.Unsatisfiable):  # nothing about some operations can be illegal
            one()

    def linked(self, examples: int, steps: int = 8) -> None:
        """Walk `examples` times along the document's links: make, read, change, delete."""
        sender = self
        with asgi.get_client(self._application) as client:

            class Machine(_schema(self._application).as_state_machine()):  # type: ignore[misc]
                def get_call_kwargs(self, case: Any) -> dict[str, Any]:
                    return {"session": client, "headers": sender._headers, "timeout": 60}

                def validate_response(self, response: Any, case: Any, **_: Any) -> None:
                    sender._judge(case, response)

            chosen = hypothesis.settings(
                max_examples=examples, stateful_step_count=steps, deadline=None, database=None, derandomize=self._again,
                phases=[Phase.generate], suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            Machine.run(settings=chosen)

    def _judge(self, case: Any, response: Any) -> None:
        label = case.operation.label
        self.tally.note(label, response)
        try:
            case.validate_response(response, checks=CHECKS, headers=self._headers)
        except BaseExceptionGroup as group:
            told = "\n".join(str(error) for error in group.exceptions)
            self.tally.failures.setdefault(f"{label}: {response.status_code}", told[:2000])
