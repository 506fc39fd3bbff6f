"""A service without HTTP, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from app.actions import Service
from app.main import start
from app.settings import Settings
from tests.app.store.databases import postgres_url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    """A started service on a fresh data folder."""
    with nullcontext("") if request.param == "sqlite" else postgres_url() as url:
        found = start(Settings(data_dir=tmp_path / "data", database_url=url, disk_floor_bytes=0))
        yield found
        found.client.destroy()
        found.database.dispose()
