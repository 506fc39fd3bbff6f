"""Every hostile upload in a real sandboxed child: its name, within a CPU second and 64 MiB over the idle child."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hostile import Case, cases, marker
from tests.security import sets
from tests.security.gauge import WAIT_S, Gauge
from tests.worker.digit_files import DEVICE
from worker.sandbox import ChildRefused

MAX_S = 1.0
MAX_BYTES = 64 << 20


@pytest.fixture(scope="module")
def gauge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gauge]:
    """One child for all uploads: none of them kills it."""
    with Gauge(tmp_path_factory.mktemp("hostile")) as made:
        pid = made.child.pid
        yield made
        assert made.child.alive and made.child.pid == pid


@pytest.mark.fault(34, 35, 36, 37, 38, 39, 40, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51)
@pytest.mark.parametrize("case", cases(), ids=str)
def test_child_when_the_upload_is_hostile_then_refused_by_name_within_a_second_and_64_mib(
    gauge: Gauge, case: Case, record_property: Callable[[str, object], None]
) -> None:
    cost = gauge.measure(case)
    record_property("seconds", round(cost.seconds, 4))
    record_property("peak_mib", round(cost.peak_bytes / 2**20, 1))
    assert cost.slug == case.slug
    assert not case.pointer or cost.pointer == case.pointer
    assert not marker().exists()
    if case.slug != "read":
        assert cost.cpu_s < MAX_S
        assert cost.peak_bytes < MAX_BYTES


@pytest.mark.fault(51)
@pytest.mark.parametrize("name", sets.UNFIT)
def test_child_when_a_dataset_does_not_fit_the_network_then_the_place_is_named(
    gauge: Gauge, files: Path, tmp_path: Path, name: str
) -> None:
    make, pointer = sets.UNFIT[name]
    (tmp_path / "set.npz").write_bytes(make())
    opening = {
        "model": str(files / "net.pt2"),
        "datasets": {"all": {"path": str(tmp_path / "set.npz"), "spec": {"layout": "NCHW"}}},
        "device": DEVICE.to_json(),
    }
    with pytest.raises(ChildRefused) as caught:
        gauge.child.call("open", opening, WAIT_S)
    assert (caught.value.slug, caught.value.errors[0]["pointer"]) == ("invalid-dataset", pointer)
