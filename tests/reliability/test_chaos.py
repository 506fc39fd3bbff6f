"""A small campaign of random kills; `make chaos` runs the whole one."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.app.store.databases import postgres_url
from tests.reliability.chaos import Campaign


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.fault(73, 75)
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_service_when_killed_at_random_then_nothing_acknowledged_is_lost_or_done_twice(
    tmp_path: Path, kind: str
) -> None:
    with nullcontext(f"sqlite:///{tmp_path / 'app.db'}") if kind == "sqlite" else postgres_url() as url:
        campaign = Campaign(tmp_path, url)
        try:
            assert campaign.run({"worker": 2, "api": 2, "child": 6}, within_s=300)
            campaign.settle()
            found = campaign.verdict()
        finally:
            campaign.stop()
    assert found["kills"] == {"worker": 2, "api": 2, "child": 6}
    assert sum(found["searches"].values()) >= 2
