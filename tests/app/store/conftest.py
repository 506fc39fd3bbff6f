"""The store on both databases: every test of this folder runs twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from app.domain import ids
from app.store import blobs
from app.store.engine import Database, connect
from app.store.migrate import upgrade
from app.store.tables import Model, Search
from tests.app.store.databases import postgres_url


@pytest.fixture(scope="session", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a migrated database."""
    file = tmp_path_factory.mktemp("store") / "app.db"
    with nullcontext(f"sqlite:///{file}") if request.param == "sqlite" else postgres_url() as found:
        upgrade(found)
        yield found


@pytest.fixture(scope="session")
def database(url: str) -> Iterator[Database]:
    """The migrated database."""
    found = connect(url)
    yield found
    found.dispose()


@pytest.fixture
def search_id(database: Database) -> str:
    """A queued search on a model of its own."""
    sha, key = "a" * 64, ids.new_id("search")
    with database.writing() as session:
        blobs.record(session, sha, 1)
        model = Model(id=ids.new_id("model"), name="net", format="onnx", blob_sha=sha, bytes=1, state="ready")
        session.add(model)
        session.flush()
        session.add(
            Search(
                id=key, name="s", model_id=model.id, dataset={"all": f"dst_{key}"}, device_id="d", device={}, spec={},
                limits={},
            )
        )  # fmt: skip
    return key
