"""tightfit fleet: members from the command line and from a file."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from app.commands.fleets import Request, exit_code, merged, parse_member


def test_member_when_written_in_a_line_then_device_and_limits() -> None:
    assert parse_member("stm32h7: weight_bytes<=64kB, bops<=1/16") == {
        "device": "stm32h7",
        "limits": [{"metric": "weight_bytes", "max": 64000.0}, {"metric": "bops", "relative": 0.0625}],
    }
    assert parse_member({"device": "a", "limits": ["bops<=1/4"], "name": "x"})["limits"] == [
        {"metric": "bops", "relative": 0.25}
    ]


@pytest.mark.parametrize("text", ["stm32h7", "stm32h7: speed<=3", "stm32h7: bops"])
def test_member_when_wrong_then_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_member(text)


def test_merged_when_options_stand_beside_a_file_then_they_go_over_it() -> None:
    file = {"model_id": "m", "dataset": {"all": "d"}, "members": ["a: bops<=1/4"], "search": {"seed": 3}, "share": 0.5}
    body = merged(file, Request(model="n", trials=9, share=0.1))
    assert (body["model"], body["data"], body["share"]) == ("n", {"all": "d"}, 0.1)
    assert body["search"] == {"seed": 3, "trials": 9}
    assert [item["device"] for item in body["members"]] == ["a"]


@pytest.mark.parametrize("missing", ["model", "data", "member"])
def test_merged_when_something_is_missing_then_wrong_usage(missing: str) -> None:
    given: dict[str, Any] = {"model": "m", "data": "d", "member": ["a: bops<=1/4"], missing: None}
    with pytest.raises(typer.BadParameter, match="is missing"):
        merged({}, Request(**given))


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [(["feasible", "feasible"], 0), (["feasible", "best_effort"], 3), (["best_effort", "none"], 1)],
)
def test_exit_code_when_members_end_differently_then_the_worst(outcomes: list[str], code: int) -> None:
    members = [{"state": "completed", "outcome": outcome} for outcome in outcomes]
    assert exit_code({"members": members}) == code


def test_merged_when_methods_are_named_and_no_data_then_asked_for_and_data_beside_are_refused() -> None:
    body = merged({}, Request(model="m", no_data=True, member=["a: bops<=1/4"], methods=["straight-through:epochs=2"]))
    assert body["data"] is True
    assert body["methods"] == [{"name": "straight-through", "training": {"epochs": 2}}]
    with pytest.raises(typer.BadParameter, match="name one of them"):
        merged({}, Request(model="m", data="d", no_data=True, member=["a: bops<=1/4"]))
    with pytest.raises(typer.BadParameter, match="'wishing' is no method"):
        merged({}, Request(model="m", data="d", member=["a: bops<=1/4"], methods=["wishing"]))
