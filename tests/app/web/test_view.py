"""View models, by numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from app.web import view


def test_layer_rows_when_made_then_shares_add_up_to_one() -> None:
    graph = {
        "layers": [
            {"name": "stem", "weight_shape": [16, 3, 3, 3], "positions": 1024},
            {"name": "head", "weight_shape": [10, 64], "positions": 1},
        ]
    }
    rows = view.layer_rows(graph)
    assert [row["macs"] for row in rows] == [442_368, 640]
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("metrics", "wanted"),
    [
        ({"accuracy": 0.8, "kl": 0.1}, ("accuracy", 0.8)),
        ({"evaluation": {"agreement": 0.9, "kl": 0.1}}, ("agreement", 0.9)),
        ({"kl": 0.25}, ("kl", 0.25)),
        ({}, ("kl", None)),
    ],
)
def test_quality_when_metrics_differ_then_the_most_telling_is_shown(
    metrics: dict[str, object], wanted: tuple[str, float | None]
) -> None:
    assert view.quality_of({"metrics": metrics}) == wanted


def test_quality_when_the_search_has_a_metric_then_that_one_is_shown_where_it_was_measured() -> None:
    item = {"metrics": {"accuracy": 0.8, "miou": 0.61, "mse": 0.012345}}
    assert view.quality_of(item, "miou") == ("miou", 0.61)
    assert view.quality_of(item, "top5") == ("accuracy", 0.8)
    assert [view.quality_text(item, name) for name in ("miou", "mse", None)] == [
        "61.00 % mIoU",
        "0.01235 MSE",
        "80.00 %",
    ]
    assert [view.heading(name) for name in ("accuracy", "miou", "kl")] == ["Accuracy", "mIoU", "KL"]


def test_limits_when_known_then_are_absolute_by_metric() -> None:
    assert view.limits_of({"budget": {"limits": {"bops": 10}}}) == {"bops": 10.0}
    assert view.limits_of({}) == {}


def test_sliders_when_a_search_has_begun_then_from_the_reachable_to_eight_bits_or_the_limit() -> None:
    search = {"budget": {"limits": {"bops": 10, "weight_bytes": 900, "latency_ms": 2.0, "macs": 5}}}
    least = {"bops": 2.0, "weight_bytes": 100.0, "latency_ms": 0.0, "macs": 5.0}
    eight = {"bops": 64.0, "weight_bytes": 800.0, "latency_ms": 1.0, "macs": 5.0}
    assert view.sliders(search, {"least": least, "w8a8": eight}) == [
        {"metric": "bops", "low": 2.0, "high": 64.0},
        {"metric": "weight_bytes", "low": 100.0, "high": 900.0},
        {"metric": "latency_ms", "low": 0.002, "high": 2.0},
    ]
    assert view.sliders(search, None) == []


def test_asked_limits_when_read_from_an_address_then_what_is_none_is_left_out() -> None:
    text = "bops:2e6,weight_bytes:30000,speed:3,latency_ms:-1,energy_mj:nan,macs:inf,macs,bops:x,"
    assert view.asked_limits(text) == [{"metric": "bops", "max": 2e6}, {"metric": "weight_bytes", "max": 30000.0}]
    assert view.asked_limits("") == []


def test_filled_in_when_like_another_search_then_its_request_under_the_new_limits() -> None:
    request = {
        "model_id": "mdl_1", "dataset": {"all": "dst_1"}, "device_id": "npu@2", "metric": "miou",
        "limits": [{"metric": "bops", "relative": 0.25}], "search": {"trials": 9, "seed": 4, "sampler": "gp"},
        "space": {"first_last": 8, "prune": False},
    }  # fmt: skip
    search = {"name": "tight", "request": request}
    found = view.filled_in(search, [{"metric": "bops", "max": 5.0}], {"npu": "dev_3"})
    assert found["limits"] == [{"metric": "bops", "max": 5.0}]
    assert [found[key] for key in ("name", "model", "data", "device")] == [
        "tight, other limits", "mdl_1", "dst_1", "dev_3",
    ]  # fmt: skip
    assert [found[key] for key in ("trials", "seed", "runners", "prune", "is_split")] == [9, 4, 1, False, False]
    assert (found["sampler"], found["goal"], found["first_last"]) == ("gp", "best", 8)
    assert found["request"] == request
    assert view.filled_in(search, [], {})["limits"] == request["limits"]
    split = {**request, "dataset": {"calibration": "a", "evaluation": "b", "holdout": "c"}}
    assert view.filled_in({**search, "request": split}, [], {})["is_split"]
    fresh = view.filled_in(None, [], {"onnxruntime-cpu": "dev_1"})
    assert (fresh["name"], fresh["device"], fresh["limits"], fresh["request"]) == ("search", "dev_1", [], {})


def test_stages_when_searching_then_earlier_ones_are_done() -> None:
    marks = dict(view.stages({"state": "running", "stage": "search"}))
    assert (marks["baseline"], marks["search"], marks["verify"]) == ("done", "now", "later")
    assert set(dict(view.stages({"state": "completed", "stage": "verify"})).values()) == {"done"}


def test_quality_rows_when_baseline_is_known_then_tell_the_change() -> None:
    holdout = {"accuracy": 0.94, "kl": 0.02, "miou": 0.5}
    candidate = {"metrics": {"metric": "miou", "evaluation": {"accuracy": 0.95}, "holdout": holdout}}
    baseline = {"metrics": {"accuracy": 0.97}, "holdout": {"accuracy": 0.96, "kl": 0.0, "miou": 0.6}}
    assert view.quality_columns(candidate) == ["miou", "accuracy", "agreement", "kl"]
    rows = view.quality_rows(candidate, baseline)
    assert [row["name"] for row in rows] == ["evaluation", "hold-out"]
    assert [cell["text"] for cell in rows[1]["cells"]] == ["50.00 %", "94.00 %", "–", "0.0200"]
    assert rows[1]["cells"][0]["delta"] == pytest.approx(-10)
    assert [row["cells"][1]["delta"] for row in rows] == pytest.approx([-2, -2])
    assert [cell["delta"] for cell in rows[1]["cells"][2:]] == [None, None]


@pytest.mark.parametrize(
    ("seconds", "text"), [(10, "just now"), (180, "3 min ago"), (7200, "2 h ago"), (90_000, "2026-01-01 00:00")]
)
def test_moment_when_recent_then_is_relative(seconds: int, text: str) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert view.moment(at.isoformat(), datetime.fromtimestamp(at.timestamp() + seconds, UTC)) == text


def test_trial_rows_when_listed_then_newest_comes_first_and_failures_say_why() -> None:
    trials = [
        {"idx": 0, "kind": "baseline", "state": "done", "metrics": {"accuracy": 0.9}, "costs": {"bops": 1}},
        {
            "idx": 1,
            "kind": "sampled",
            "state": "failed",
            "failure": {"kind": "x", "detail": "out of memory"},
        },
    ]
    candidates = [{"id": "cnd_2", "rank": 2, "trial_idx": 1}, {"id": "cnd_1", "rank": 1, "trial_idx": 0}]
    rows = view.trial_rows(trials, candidates)
    assert [row["idx"] for row in rows] == [1, 0]
    assert rows[0]["failure"] == "out of memory"
    assert rows[1]["chosen"]
    assert [row["href"] for row in rows] == ["/candidates/cnd_2", "/candidates/cnd_1"]
    (point,) = view.points(trials, candidates)
    assert (point.idx, point.chosen, point.href) == (0, True, "/candidates/cnd_1")


def test_checks_when_a_report_is_there_then_facts_and_failures_are_told() -> None:
    report = {
        "accuracy": {"simulated": 0.9, "onnx": 0.91},
        "agreement": {"top1": 0.999},
        "latency": {"float": {"min_ms": 2.0}, "compressed": {"min_ms": 0.05}},
        "latency_ratio": 40.0,
        "costs": {"weight_bytes": 12_300},
        "failures": [{"code": "recount", "detail": "bytes differ"}],
        "notes": ["slow"],
    }
    facts = dict(view.check_facts(report))
    assert (facts["Top-1 agreement"], facts["Latency here"], facts["Speed-up here"]) == ("99.90 %", "50 µs", "40.00×")
    assert facts["Weight bytes, recounted"] == "12.3 kB"
    assert view.check_notes(report) == [("bad", "recount: bytes differ"), ("warn", "slow")]
    assert view.check_facts({}) == []


def test_brief_when_long_floats_then_four_digits() -> None:
    assert view.brief([0.49139968, 1]) == "[0.4914, 1]"


def test_refusals_when_one_thing_is_found_at_several_places_then_counted_once_each() -> None:
    errors = [{"pointer": "/graph/a", "detail": "Loop"}, {"pointer": "/graph/b", "detail": "If"}]
    found = view.refusal_rows({"errors": [*errors, {"pointer": "/graph/c", "detail": "Loop"}]})
    assert found == [
        {"what": "Loop", "count": 2, "where": ["/graph/a", "/graph/c"]},
        {"what": "If", "count": 1, "where": ["/graph/b"]},
    ]
    assert view.refusal_rows({}) == []


def test_training_rows_when_methods_ran_then_each_with_its_change_and_outcome() -> None:
    def step(name: str, kept: bool, after: float | None, problem: str | None = None) -> dict[str, Any]:
        held = {"before": {"accuracy": 0.5}, "after": None if after is None else {"accuracy": after}}
        told = {"losses": [2.0, 1.0], "seconds": 3.0, "kept": kept, "problem": problem, "holdout": held}
        return {"method": {"name": name}, **told}

    steps = [step("a", True, 0.625), step("b", False, 0.25), step("c", False, None, "loss-not-finite: NaN")]
    rows = view.training_rows({"metrics": {"metric": "accuracy", "training": {"steps": steps}}})
    assert [(row["name"], row["state"], row["epochs"]) for row in rows] == [
        ("a", "kept", 2),
        ("b", "left out: no better on the evaluation pictures", 2),
        ("c", "loss-not-finite: NaN", 2),
    ]
    assert [row["cells"][0]["delta"] for row in rows] == [12.5, -25.0, None]
    assert view.training_rows({"metrics": {}}) == []
