"""The config comes back from its YAML as it went in, whatever it holds."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.export.config import NEEDED, ConfigRefused, config_yaml, read_config

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**62), 2**62)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=12)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner))


def recipe(**changed: Any) -> dict[str, Any]:
    return {**{name: {} for name in NEEDED if name not in ("versions", "files")}, **changed}


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=4))
def test_config_when_read_again_then_the_same_values(record: dict[str, Any]) -> None:
    data = config_yaml(recipe(record=record, repair="1e5", limits={"bops": 1e-05, "macs": math.pi}), {"onnx": b"x"})
    found = read_config(data)
    assert found["record"] == record
    assert found["limits"] == {"bops": 1e-05, "macs": math.pi} and found["repair"] == "1e5"
    assert found["files"] == {"onnx": hashlib.sha256(b"x").hexdigest()}
    assert config_yaml({name: found[name] for name in recipe()}, {"onnx": b"x"}) == data


def test_config_when_one_value_stands_in_two_places_then_no_alias_is_written() -> None:
    shared = {"a": [1, 2]}
    text = config_yaml(recipe(record=shared, device=shared), {}).decode()
    assert "&id" not in text and read_config(text.encode())["device"] == shared


def test_read_config_when_a_part_is_missing_then_refused_by_its_name() -> None:
    text = config_yaml({name: value for name, value in recipe().items() if name != "repair"}, {})
    with pytest.raises(ConfigRefused, match="repair"):
        read_config(text)
