"""Every hostile upload, straight to the readers: refused by its name, in time, and nothing runs."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

import pytest

from tests.hostile import Case, cases, marker
from tests.security.archives import sound
from tests.security.programs import TARGETS
from worker.data import DatasetRefused, DatasetSpec, read_dataset
from worker.graph.errors import NetworkRefused
from worker.graph.read import read_network
from worker.graph.weights import read_weights
from worker.search.evaluate import open_network

MAX_S = 1.0
CASES = cases()


@cache
def warm() -> None:
    """Read a network once: the first one waits for imports."""
    open_network(sound())


def answer(case: Case, data: bytes, path: Path) -> tuple[str, str]:
    """Return "read" or the slug, and the pointer of the first error."""
    try:
        if case.kind == "dataset":
            path.write_bytes(data)
            read_dataset(path, DatasetSpec())
        elif case.kind == "weights":
            read_network(sound(), weights=data)
        else:
            open_network(data)
    except (NetworkRefused, DatasetRefused) as refusal:
        assert 0 < len(refusal.detail) < 2000
        return refusal.slug, str(refusal.errors[0]["pointer"]) if refusal.errors else ""
    return "read", ""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_upload_when_hostile_then_the_answer_has_its_name_within_a_second_and_nothing_runs(
    case: Case, tmp_path: Path
) -> None:
    warm()
    data = case.make()
    start = time.process_time()
    slug, pointer = answer(case, data, tmp_path / "upload")
    assert time.process_time() - start < MAX_S
    assert slug == case.slug
    if case.pointer:
        assert pointer == case.pointer
    assert not marker().exists()


@pytest.mark.parametrize("name", TARGETS)
def test_target_when_it_is_not_in_the_table_then_listed_with_its_count(name: str) -> None:
    make, counts = TARGETS[name]
    with pytest.raises(NetworkRefused) as caught:
        read_network(make())
    for target, count in counts.items():
        assert f"{target} ({count}x)" in caught.value.detail
    assert sorted(item["detail"] for item in caught.value.errors) == sorted(
        target for target, count in counts.items() for _ in range(count)
    )


def test_weights_when_sound_bytes_are_read_then_every_tensor_is_there() -> None:
    from tests.security.tensors import sound as tensors

    assert sorted(read_weights(tensors())) == ["x", "y"]
