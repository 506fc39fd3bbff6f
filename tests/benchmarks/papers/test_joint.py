"""The part of joint pruning and quantization: claims, rows and curves, of what was measured and of what was not."""

from __future__ import annotations

from typing import Any

from benchmarks.papers import joint

NAME = "resnet8_cifar10"


def run(error: float, bops: int = 90, limit: float = 100.0) -> dict[str, Any]:
    return {"error": error, "bops": bops, "limit": limit, "shape": {"macs": 0.5, "bits": 3.0}}


def seeds(way: str, *errors: float) -> dict[str, Any]:
    return {f"{NAME}-32-{seed}-{way}": run(error) for seed, error in enumerate(errors)}


def verdicts(found: dict[str, Any]) -> dict[str, tuple[bool | None, str]]:
    return {claim.text: (claim.holds, claim.figures) for claim in joint.claims(found)}


def test_parts_when_named_then_lenet_first_and_two_ways_for_each_seed_and_share() -> None:
    names = [*joint.parts()]
    assert names[:2] == ["lenet-search", "lenet"]
    assert sum(name.endswith("-joint") for name in names) == sum(name.endswith("-two-stage") for name in names) == 12
    assert "vgg7_cifar10-8-2-two-stage" in names


def test_claims_when_seeds_are_missing_then_open_and_when_all_are_there_then_by_the_mean() -> None:
    text = f"DJPQ, {NAME} at 1/32: joint ahead of two-stage in the mean over 3 seeds"
    some = {**seeds("joint", 30.0, 31.0), **seeds("two-stage", 32.0, 32.0, 32.0)}
    assert verdicts(some)[text] == (None, "-")
    both = {**seeds("joint", 30.0, 31.0, 33.5), **seeds("two-stage", 32.0, 32.0, 32.0)}
    assert verdicts(both)[text] == (True, "+0.50 points (+2.00, +1.00, -1.50)")
    worse = {**seeds("joint", 33.0, 33.0, 33.0), **seeds("two-stage", 32.0, 32.0, 32.0)}
    assert verdicts(worse)[text] == (False, "-1.00 points (-1.00, -1.00, -1.00)")


def test_claims_when_the_control_is_measured_then_against_the_same_seed() -> None:
    text = f"DJPQ, {NAME} at 1/32: joint no worse than training its start straight through (seed 0)"
    found = {**seeds("joint", 31.0, 20.0, 20.0), f"{NAME}-32-straight": run(30.5)}
    assert verdicts(found)[text] == (False, "-0.50 points")
    assert verdicts(seeds("joint", 30.0))[text] == (None, "-")


def test_claims_when_a_limit_is_broken_then_missed() -> None:
    text = "DJPQ: every limit on the BOPs kept"
    assert verdicts(seeds("joint", 30.0))[text] == (True, "1 networks")
    assert verdicts({f"{NAME}-32-0-joint": run(30.0, bops=101)})[text] == (False, "1 networks")


def test_claims_of_lenet_when_measured_then_by_accuracy_and_share() -> None:
    text = "DJPQ, LeNet-5: at least 99.0 % test accuracy at 0.6 % of the float BOPs or less"
    item = {**run(0.8), "share": 0.0036}
    assert verdicts({"lenet": item})[text] == (True, "99.20 % at 0.360 %; 99.3 % at 0.36 % not reached")
    assert verdicts({"lenet": {**item, "error": 1.1}})[text][0] is False
    others = {f"lenet-{way}": run(error) for way, error in (("search", 1.2), ("straight", 0.9), ("gates", 0.7))}
    assert [row[2:4] for row in joint.rows({"lenet": item, **others})[1:]] == [
        ["search", "1.20 %"],
        ["straight", "0.90 %"],
        ["joint", "0.80 %"],
        ["gates", "0.70 %"],
    ]


def test_rows_when_seeds_are_measured_then_the_mean_and_its_spread() -> None:
    (row,) = joint.rows(seeds("joint", 30.0, 32.0))[1:]
    assert row == [NAME, "1/32", "joint", "31.00 % ± 1.00", "2", "90.0 %", "50 %", "3.00"]


def test_plots_when_measured_then_one_curve_for_each_network_and_way() -> None:
    found = {**seeds("joint", 30.0), **seeds("two-stage", 32.0), f"{NAME}-32-search": run(40.0)}
    plots = joint.plots(found)
    assert list(plots) == [f"{NAME}: test accuracy by BOPs"]
    (svg,) = plots.values()
    assert all(way in svg for way in ("joint", "two-stage", "search")) and "straight" not in svg
    assert joint.plots({}) == {}
