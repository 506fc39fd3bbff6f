"""Methods as they are written on the command line and in requests."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from app.api.schemas import MethodIn
from app.commands.limits import parse_methods
from app.domain.methods import (
    METHODS,
    BiasCorrection,
    ChannelGating,
    JointPruning,
    RelaxedQuantization,
    Training,
    method_of,
    to_json,
    wall_s,
)


def test_methods_when_written_with_parameters_then_those_of_training_are_apart() -> None:
    assert parse_methods(["relaxed-quantization:epochs=20,temperature=0.5,straight=false", "straight-through"]) == [
        {"name": "relaxed-quantization", "training": {"epochs": 20}, "temperature": 0.5, "straight": False},
        {"name": "straight-through", "training": {}},
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adaround", "'adaround' is no method; use one of straight-through, relaxed-quantization, learned-thresholds"),
        ("straight-through:temperature=1", "'temperature' is no parameter of straight-through"),
        ("straight-through:epochs", "'epochs' is no parameter"),
        (
            "bias-correction:epochs=3",
            "'epochs' is no parameter of bias-correction; use one of mode, padding_aware, rows",
        ),
    ],
)
def test_methods_when_unknown_then_what_there_is(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_methods([text])


@pytest.mark.parametrize("name", METHODS)
def test_request_when_only_named_then_the_domain_s_defaults(name: str) -> None:
    found = TypeAdapter(MethodIn).validate_python({"name": name}).model_dump()
    assert method_of(found) == METHODS[name]()
    assert method_of(to_json(METHODS[name]())) == METHODS[name]()


@pytest.mark.parametrize(
    "body",
    [
        {"name": "adaround"},
        {"name": "straight-through", "training": {"epochs": 0}},
        {"name": "straight-through", "training": {"rate": float("nan")}},
        {"name": "straight-through", "temperature": 1.0},
        {"name": "relaxed-quantization", "noise": 2.0},
        {"name": "relaxed-quantization", "training": {"labels": 1.5}},
        {"name": "djpq", "start": "middle"},
        {"name": "djpq", "joint": 1.5},
        {"name": "djpq", "widths": "masked"},
        {"name": "djpq", "threshold": 0.0},
        {"name": "channel-gating", "macs": 1.0},
        {"name": "channel-gating", "block": 0},
        {"name": "bias-correction", "mode": "guessed"},
        {"name": "bias-correction", "training": {"epochs": 1}},
    ],
)
def test_request_when_a_value_is_out_of_bounds_then_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(MethodIn).validate_python(body)


def test_methods_when_a_parameter_is_a_word_then_as_it_is() -> None:
    (found,) = parse_methods(["djpq:epochs=10,gamma=0.0001,start=float,widths=gates"])
    assert found == {"name": "djpq", "training": {"epochs": 10}, "gamma": 0.0001, "start": "float", "widths": "gates"}
    assert method_of(found) == JointPruning(Training(epochs=10), start="float", gamma=0.0001, widths="gates")


def test_methods_when_gates_are_asked_for_then_what_the_domain_reads() -> None:
    (found,) = parse_methods(["channel-gating:epochs=3,macs=0.5,block=4"])
    asked = TypeAdapter(MethodIn).validate_python(found).model_dump()
    assert method_of(asked) == ChannelGating(Training(epochs=3), macs=0.5, block=4)


def test_methods_when_one_trains_nothing_then_no_training_is_said() -> None:
    written = parse_methods(["bias-correction:mode=analytic,padding_aware=false"])
    assert written == [{"name": "bias-correction", "mode": "analytic", "padding_aware": False}]
    found = method_of(TypeAdapter(MethodIn).validate_python(written[0]).model_dump())
    assert found == BiasCorrection("analytic", padding_aware=False)
    assert wall_s(found) is None and wall_s(RelaxedQuantization(Training(max_wall_s=9.0))) == 9.0
    assert to_json(found) == {"name": "bias-correction", "mode": "analytic", "padding_aware": False, "rows": 2048}


def test_method_when_read_then_typed() -> None:
    found = method_of({"name": "relaxed-quantization", "noise": 0.5, "training": {"rows": 9}})
    assert found == RelaxedQuantization(Training(rows=9), noise=0.5)
