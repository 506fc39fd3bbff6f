"""The OpenAPI document is the one that is kept, and the service does what it says: generated requests prove it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from app.main import create_app
from app.problems import PROBLEMS
from app.settings import Settings
from tests.schema.run import Sender, operations, service

KEPT = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[FastAPI, str]]:
    with service() as found:
        yield found


def test_document_when_made_from_the_routes_then_it_is_the_kept_one(tmp_path: Path) -> None:
    made = create_app(Settings(data_dir=tmp_path)).openapi()
    assert made == json.loads(KEPT.read_text()), "the document has changed: run `make docs`"


@pytest.mark.slow
def test_service_when_sent_generated_requests_then_no_fault_and_every_answer_is_in_the_document(
    running: tuple[FastAPI, str],
) -> None:
    sender = Sender(*running)
    sender.each(4)
    sender.linked(8)
    tally = sender.tally
    assert tally.failures == {}
    assert max(tally.statuses) < 500
    assert set(tally.operations) == {operation.label for operation in operations(running[0])}
    assert tally.requests > 400
    assert set(tally.problems) <= set(PROBLEMS)


def test_sender_when_the_document_leaves_an_answer_out_then_it_is_told(
    running: tuple[FastAPI, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    application, key = running
    document: dict[str, Any] = copy.deepcopy(application.openapi())
    path = "/v1/models/{id}"
    document["paths"] = {path: document["paths"][path]}
    del document["paths"][path]["get"]["responses"]["404"]
    for item in document["paths"][path].values():
        item.pop("links", None)
    monkeypatch.setattr(application, "openapi_schema", document)
    sender = Sender(application, key)
    sender.each(2)
    assert "GET /v1/models/{id}: 404" in sender.tally.failures
