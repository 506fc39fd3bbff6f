"""Damaged and lying files: only typed refusals come out, soon, and nothing large is allocated."""

from __future__ import annotations

import io
import json
import random
import time
import zipfile
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto

from tests.worker.graph.models import constants, node, proto
from tests.worker.graph.nets import exported, make
from worker.graph.errors import NetworkRefused
from worker.graph.extents import shapes_of
from worker.graph.read import read_network
from worker.graph.rewrite import fold_batchnorm
from worker.graph.write_onnx import write_float
from worker.search.evaluate import open_network

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
SLUGS = {
    "compressed-entry",
    "dynamic-shape-unsupported",
    "external-data-refused",
    "invalid-archive",
    "invalid-graph",
    "invalid-onnx",
    "invalid-tensor",
    "model-too-large",
    "overlapping-entries",
    "trailing-data",
    "unrecognised-format",
    "unsafe-format",
    "unsupported-format",
    "unsupported-operator",
}
JUNK: list[Any] = [None, -1, 0, 1 << 62, 1 << 70, 1.5, "x", "__import__('os')", [], {}, True, {"as_int": -1}, [[]]]


@pytest.fixture(scope="module")
def archive() -> bytes:
    return exported(make("plain"))


def attempt(data: bytes) -> str:
    """Return "read" or the slug; any other exception, and any slug outside the catalogue, fails the test."""
    try:
        read_network(data)
    except NetworkRefused as refusal:
        assert refusal.slug in SLUGS
        assert refusal.detail
        return refusal.slug
    return "read"


def entries(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        return {name: found.read(name) for name in found.namelist()}


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as made:
        for name, data in files.items():
            made.writestr(name, data)
    return buffer.getvalue()


def program(data: bytes, ending: str) -> tuple[str, Any]:
    name = next(name for name in entries(data) if name.endswith(ending))
    return name, json.loads(entries(data)[name])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys: list[Any] = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    return ([path] if path else []) + [found for key in keys for found in places(value[key], (*path, key))]


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


@pytest.mark.parametrize("ending", [MODEL, WEIGHTS])
def test_archive_when_any_json_value_is_junk_then_read_or_refused_by_name(archive: bytes, ending: str) -> None:
    name, document = program(archive, ending)
    files, rng = entries(archive), random.Random(0)
    spots = [path for path in places(document) if ending == WEIGHTS or path[0] == "graph_module"]
    for path in rng.sample(spots, min(120, len(spots))):
        attempt(packed({**files, name: json.dumps(replaced(document, path, rng.choice(JUNK))).encode()}))


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_file_when_bytes_are_flipped_or_cut_then_read_or_refused_by_name(archive: bytes, kind: str) -> None:
    data = archive if kind == "pt2" else write_float(fold_batchnorm(read_network(archive)))
    rng = random.Random(1)
    seen = set()
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 2, 8])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        seen.add(attempt(bytes(damaged)))
        seen.add(attempt(data[: rng.randrange(len(data))]))
    assert "invalid-archive" in seen if kind == "pt2" else "invalid-onnx" in seen


def meta(item: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**item, "tensor_meta": {**item["tensor_meta"], **changes}}


@pytest.mark.parametrize(
    ("changes", "slug"),
    [
        ({"storage_offset": {"as_int": 1 << 40}}, "invalid-tensor"),
        ({"strides": [{"as_int": 1 << 40}]}, "invalid-tensor"),
        ({"strides": [{"as_int": -1}]}, "invalid-tensor"),
        ({"sizes": [{"as_int": 1 << 62}]}, "invalid-tensor"),
        ({"dtype": 99}, "invalid-tensor"),
        ({"sizes": [{"as_expr": {"expr_str": "__import__('os').system('true')"}}]}, "dynamic-shape-unsupported"),
    ],
)
def test_stored_tensor_when_it_lies_about_its_place_then_refused(
    archive: bytes, changes: dict[str, Any], slug: str
) -> None:
    name, document = program(archive, WEIGHTS)
    document["config"]["head.bias"] = meta(document["config"]["head.bias"], **changes)
    assert attempt(packed({**entries(archive), name: json.dumps(document).encode()})) == slug


def test_archive_when_something_follows_it_then_refused(archive: bytes) -> None:
    assert attempt(archive + b"more") == "invalid-archive"


def relu(**changes: Any) -> onnx.ModelProto:
    return proto([node("Relu", ["x"], ["z"])], {}, **changes)


def with_attribute(**fields: Any) -> onnx.ModelProto:
    model = relu()
    model.graph.node[0].attribute.append(AttributeProto(name="a", **fields))
    return model


def with_weight(**fields: Any) -> onnx.ModelProto:
    model = proto([node("Conv", ["x", "w"], ["z"])], {})
    model.graph.initializer.append(TensorProto(name="w", **fields))
    return model


def outside_constant() -> onnx.ModelProto:
    tensor = TensorProto(name="k", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return proto([node("Constant", [], ["k"], value=tensor), node("Add", ["x", "k"], ["z"])], {})


def doubling() -> onnx.ModelProto:
    """Sixteen concatenations that would fold 64 thousand numbers to four thousand million."""
    chain = [node("Concat", ["c0", "c0"], ["c1"], axis=0)]
    chain += [node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(1, 16)]
    return proto([*chain, node("Add", ["x", "c16"], ["z"])], {"c0": np.ones(1 << 16, np.float32)})


ONNX_FILES: dict[str, tuple[onnx.ModelProto, str]] = {
    "vast input": (relu(shape=(3, 10**6, 10**6)), "model-too-large"),
    "vaster input": (relu(shape=(3, 2**40, 2**40)), "model-too-large"),
    "doubling constants": (doubling(), "model-too-large"),
    "vast weight": (with_weight(data_type=1, dims=[2**62, 2**62]), "invalid-tensor"),
    "short weight": (with_weight(data_type=1, dims=[6, 4, 1, 1], raw_data=b"abc"), "invalid-tensor"),
    "weight of no type": (with_weight(data_type=99, dims=[1]), "invalid-tensor"),
    "weight of text": (with_weight(data_type=8, dims=[1], string_data=[b"a"]), "invalid-tensor"),
    "reference attribute": (with_attribute(type=2, ref_attr_name="r"), "invalid-graph"),
    "node without outputs": (proto([node("Relu", ["x"], [])], {}), "invalid-graph"),
    "name given twice": (
        proto([node("Relu", ["x"], ["y"]), node("Tanh", ["y"], ["y"]), node("Relu", ["y"], ["z"])], {}),
        "invalid-graph",
    ),
    "cycle": (proto([node("Add", ["x", "b"], ["a"]), node("Add", ["a", "x"], ["b"])], {}), "invalid-graph"),
    "output from nowhere": (proto([node("Relu", ["x"], ["y"])], {}), "invalid-graph"),
    "constant output": (proto([node("Identity", ["k"], ["z"])], constants(k=(3,))), "invalid-graph"),
    "external constant": (outside_constant(), "external-data-refused"),
    "branch": (
        proto([node("If", ["x"], ["z"], then_branch=relu().graph, else_branch=relu().graph)], {}),
        "unsupported-operator",
    ),
    "old opset": (relu(opset=9), "invalid-onnx"),
    "open height": (relu(shape=(3, 0, 8)), "dynamic-shape-unsupported"),
}


@pytest.mark.parametrize("name", ONNX_FILES)
def test_onnx_file_when_it_lies_then_refused_by_name(name: str) -> None:
    model, slug = ONNX_FILES[name]
    assert attempt(model.SerializeToString()) == slug


def test_declared_format_when_it_disagrees_with_the_content_then_refused(archive: bytes) -> None:
    with pytest.raises(NetworkRefused, match="declared as 'onnx'"):
        read_network(archive, "onnx")
    assert attempt(relu().SerializeToString()) == "read"


def test_recurrent_network_when_sequences_are_long_then_read_as_soon_as_short_ones() -> None:
    seconds = []
    for steps in (8, 2000):
        data = recurrent(steps).SerializeToString()
        start = time.process_time()
        module = read_network(data)
        assert shapes_of(module)["lstm"] == (steps, 1, 10)
        seconds.append(time.process_time() - start)
    assert seconds[1] < seconds[0] + 0.5


def recurrent(steps: int) -> onnx.ModelProto:
    """An LSTM of ten cells over sequences of four features; time comes first inside."""
    held = constants(w=(1, 40, 4), r=(1, 40, 10))
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("LSTM", ["t", "w", "r"], ["y"], "lstm", hidden_size=10),
        node("Squeeze", ["y", "one"], ["z"]),
    ]
    return proto(nodes, {**held, "one": np.array([1])}, shape=(steps, 4))


@pytest.mark.parametrize(
    ("shape", "slug"),
    [
        ((3, 1_000_003, 4), "model-too-large"),
        ((3, 4096, 4096), "model-too-large"),
        (((1 << 24) + 1, 1, 1), "model-too-large"),
    ],
)
def test_input_when_vast_then_too_large(shape: tuple[int, ...], slug: str) -> None:
    with pytest.raises(NetworkRefused) as caught:
        open_network(proto([node("Relu", ["x"], ["z"])], {}, shape=shape).SerializeToString())
    assert caught.value.slug == slug
