"""What processes are killed and stopped on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.store.databases import postgres_url
from tests.reliability.rig import Rig, build


@pytest.fixture
def rig(tmp_path: Path, files: Path, picture: dict[str, Any]) -> Iterator[Rig]:
    """Return a rig on a PostgreSQL database of its own; skip where no server answers."""
    with postgres_url() as url:
        made = build(url, tmp_path, files, picture)
        yield made
        made.database.dispose()
