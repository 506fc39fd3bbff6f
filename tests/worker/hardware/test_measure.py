"""Interleaved latency in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from worker.hardware import host
from worker.hardware.measure import Latency, measure, open_session

ROW = [np.ones((1, 64, 1, 1), np.float32)]


def stack(depth: int) -> bytes:
    """A chain of `depth` 64x64 matrix products behind a flatten of (64, 1, 1) pictures."""
    nodes = [helper.make_node("Flatten", ["x"], ["h0"])]
    nodes += [helper.make_node("MatMul", [f"h{i}", "w"], [f"h{i + 1}"]) for i in range(depth)]
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64, 1, 1])],
        [helper.make_tensor_value_info(f"h{depth}", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor("w", TensorProto.FLOAT, (64, 64), [0.01] * 4096)],
    )
    opsets = [helper.make_opsetid("", 21)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def test_measure_when_one_network_is_far_deeper_then_it_takes_longer_in_the_same_rounds() -> None:
    times = measure({"shallow": stack(1), "deep": stack(200)}, ROW, rounds=10)
    assert times["deep"].runs == times["shallow"].runs == 10
    assert times["deep"].min_ms > 2 * times["shallow"].min_ms
    assert 0 < times["deep"].min_ms <= times["deep"].median_ms <= times["deep"].p95_ms


def test_measure_when_time_is_up_then_at_least_one_round_is_run() -> None:
    assert measure({"only": stack(1)}, ROW, rounds=1000, max_seconds=0.0)["only"].runs == 1


def test_latency_when_made_of_runs_then_order_statistics_survive_json() -> None:
    latency = Latency.of([float(value) for value in range(21, 0, -1)])
    assert (latency.min_ms, latency.median_ms, latency.p95_ms, latency.runs) == (1.0, 11.0, 20.0, 21)
    assert Latency.from_json(latency.to_json()) == latency


def test_open_session_when_bytes_are_no_model_then_raises() -> None:
    with pytest.raises(Exception, match="protobuf parsing failed"):
        open_session(b"not a model")


def test_open_session_when_opened_then_one_thread_is_used() -> None:
    options = open_session(stack(1)).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_describe_when_asked_then_runtime_and_cores_are_named() -> None:
    facts = host.describe()
    assert facts["cores"] and facts["processor"] and facts["onnxruntime"]
