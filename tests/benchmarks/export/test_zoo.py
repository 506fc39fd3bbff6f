"""Random assignments of the zoo: what is measured of one network, and what is allowed of its kernels."""

from __future__ import annotations

import pytest

from benchmarks.export import zoo


def test_measure_when_tokens_are_of_any_width_then_kernels_keep_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(zoo, "ASSIGNMENTS", 3)
    found = zoo.measure("causal_decoder")["assignments"]
    assert len(found) == 3 and not any(zoo.is_below(item) for item in found)
    kernels: dict[str, dict[str, float]] = {}
    for item in found:
        zoo.merge(kernels, item["kernels"])
    assert {key.partition("/")[0] for key in kernels} == set(zoo.ALLOWED)
    assert all(zoo.keeps(key, item) for key, item in kernels.items())
    assert kernels["integer/linear"]["share"] == 0.0 and kernels["integer/linear"]["sites"] >= 3


@pytest.mark.parametrize(
    ("kernel", "share", "steps", "kept"),
    [
        ("integer/conv", 0.0, 0, True),
        ("integer/conv", 1e-9, 1, False),
        ("float to 8 bits/tanh", 1e-3, 1, True),
        ("float to 8 bits/tanh", 1e-3, 2, False),
        ("float to 16 bits/conv", 0.06, 1, False),
    ],
)
def test_keeps_when_a_kernel_differs_then_by_its_class(kernel: str, share: float, steps: int, kept: bool) -> None:
    assert zoo.keeps(kernel, {"sites": 1, "share": share, "steps": steps}) is kept


def test_is_below_when_either_figure_is_then_told() -> None:
    assert not zoo.is_below({"sqnr_db": 30.0, "top1": 0.98})
    assert zoo.is_below({"sqnr_db": 29.9, "top1": 1.0}) and zoo.is_below({"sqnr_db": 99.0, "top1": 0.97})
