"""What the tests of a worker share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.rig import Rig, build


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, files: Path, picture: dict[str, Any]) -> Iterator[Rig]:
    """Return a rig on SQLite, one for all tests of a module."""
    folder = tmp_path_factory.mktemp("rig")
    made = build(f"sqlite:///{folder / 'app.db'}", folder, files, picture)
    yield made
    made.database.dispose()
