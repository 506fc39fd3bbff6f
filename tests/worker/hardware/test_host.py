"""Facts about a machine."""

from __future__ import annotations

import pytest

from worker.hardware.host import has_saturating_pairs


@pytest.mark.parametrize(
    ("machine", "features", "expected"),
    [
        ("x86_64", ["avx2"], True),
        ("AMD64", ["avx2", "avx512f"], True),
        ("x86_64", ["avx2", "avx512f", "avx512_vnni"], False),
        ("x86_64", ["avx2", "avx_vnni"], False),
        ("aarch64", ["asimddp"], False),
        ("aarch64", [], False),
    ],
)
def test_pairs_when_x86_has_no_dot_product_then_they_saturate(
    machine: str, features: list[str], expected: bool
) -> None:
    assert has_saturating_pairs({"machine": machine, "features": features}) is expected


def test_pairs_when_nothing_is_known_of_the_machine_then_they_do_not() -> None:
    assert not has_saturating_pairs({})
