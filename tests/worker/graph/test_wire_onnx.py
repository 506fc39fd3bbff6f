"""The wire walk: what protobuf writes passes, counted right; what lies or floods does not."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.security.onnx_files import field, flood, model, sound, varint
from tests.worker.graph.nets import exported, make
from worker.graph.errors import NetworkRefused
from worker.graph.read import read_network
from worker.graph.rewrite import fold_batchnorm
from worker.graph.wire_onnx import MAX_MESSAGES, check_wire
from worker.graph.write_onnx import write_float


def refusal(data: bytes) -> str:
    with pytest.raises(NetworkRefused) as caught:
        check_wire(data)
    return caught.value.slug


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "concat"])
def test_wire_when_the_file_is_a_real_network_then_it_passes(name: str) -> None:
    check_wire(write_float(fold_batchnorm(read_network(exported(make(name))))))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.text(), st.floats(width=32, allow_nan=False))
def test_wire_when_numbers_are_any_then_it_passes(numbers: list[int], text: str, number: float) -> None:
    made = sound()
    made.graph.node[0].attribute.append(helper.make_attribute("ints", numbers, attr_type=onnx.AttributeProto.INTS))
    made.graph.node[0].attribute.append(helper.make_attribute("i", numbers[0] if numbers else -1))
    made.graph.node[0].attribute.append(helper.make_attribute("f", number))
    made.graph.node[0].doc_string = text
    check_wire(made.SerializeToString())


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(1, 1000))
def test_wire_when_a_field_is_unknown_then_its_length_alone_counts(number: int, size: int) -> None:
    data = sound().SerializeToString()
    check_wire(data + varint(100 << 3) + varint(number) + field(101, bytes(size)))
    assert refusal(data + field(101, bytes(size), claimed=size + 1)) == "invalid-onnx"


def test_wire_when_a_file_is_cut_anywhere_inside_a_field_then_refused() -> None:
    data = field(7, field(1, b"\x0a\x01x" * 5))
    check_wire(data)
    assert {refusal(data[:size]) for size in range(1, len(data))} == {"invalid-onnx"}


def test_wire_when_messages_reach_the_cap_then_only_one_more_is_too_many() -> None:
    check_wire(flood(1, MAX_MESSAGES - 3))  # beside the graph, its output and the opset
    assert refusal(flood(1, MAX_MESSAGES - 2)) == "model-too-large"


def test_wire_when_a_number_has_ten_bytes_then_read_and_eleven_then_refused() -> None:
    check_wire(model(b"") + varint(100 << 3) + b"\xff" * 9 + b"\x01")
    assert refusal(model(b"") + varint(100 << 3) + b"\xff" * 10 + b"\x01") == "invalid-onnx"
