"""Who shares measurements: one owner's searches on the same network and data, never another's."""

from __future__ import annotations

from app.store.tables import Search
from tests.reliability.rig import Rig
from worker.cache import Cache
from worker.job import Site, load_job


def context(rig: Rig, owner_id: str) -> str:
    """Return what the measurements of an owner's new search have in common."""
    key = rig.add_search(2)
    with rig.database.writing() as session:
        session.get_one(Search, key).owner_id = owner_id
    return Cache(load_job(Site(rig.database, rig.blobs), key)).context


def test_measurements_when_another_owner_has_the_same_network_and_data_then_its_are_not_shared(rig: Rig) -> None:
    names = ("default", "default", "ant", "ant", "bee")
    default, again, ant, still, bee = (context(rig, name) for name in names)
    assert default == again and ant == still
    assert len({default, ant, bee}) == 3
