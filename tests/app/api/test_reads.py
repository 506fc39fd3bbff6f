"""What a read costs: no thread for what reads nothing, no network that is parsed again and again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from app.actions import Service
from app.api.deps import PagingDep, ServiceDep
from app.api.resources import dataset_filters, model_filters
from app.api.searches import search_filters
from app.web.pages import Read


@contextmanager
def statements(service: Service) -> Iterator[list[str]]:
    """Collect the SQL of reads."""
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        found.append(statement)

    sa.event.listen(service.database.read, "before_cursor_execute", note)
    try:
        yield found
    finally:
        sa.event.remove(service.database.read, "before_cursor_execute", note)


@pytest.mark.parametrize("depended", [ServiceDep, PagingDep, Read])
def test_dependency_when_it_reads_no_rows_then_it_takes_no_other_thread(depended: Any) -> None:
    assert inspect.iscoroutinefunction(get_args(depended)[1].dependency)


@pytest.mark.parametrize("filters", [model_filters, dataset_filters, search_filters])
def test_filters_when_depended_on_then_they_take_no_other_thread(filters: Any) -> None:
    assert inspect.iscoroutinefunction(filters)


def test_search_when_read_again_then_its_network_is_not(
    client: TestClient, service: Service, request_body: dict[str, Any]
) -> None:
    made = client.post("/v1/searches", json=request_body).json()
    address = f"/v1/searches/{made['id']}"
    first = client.get(address)
    with statements(service) as found:
        again = client.get(address)
    assert again.json() == first.json() and again.headers["etag"] == first.headers["etag"]
    assert not [statement for statement in found if "FROM model" in statement]
    assert len([statement for statement in found if statement.startswith("SELECT")]) == 3  # key, search, timings
