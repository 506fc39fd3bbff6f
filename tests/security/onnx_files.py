"""Hostile ONNX files: data outside the file, lying lengths, floods of fields, graphs that contradict themselves."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import onnx
from onnx import TensorProto, helper

from tests.security.pickles import marker
from tests.worker.graph.models import constants, node, proto

Made = Callable[[], bytes]
NODE, INITIALIZER, OUTPUT, VALUE_INFO = 1, 5, 12, 13
GRAPH, ATTRIBUTE = 7, 5


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes, claimed: int | None = None) -> bytes:
    """Return a field that holds bytes, perhaps claiming another length."""
    return varint(number << 3 | 2) + varint(len(content) if claimed is None else claimed) + content


def model(graph: bytes) -> bytes:
    """Return a model of a graph's bytes: version 9, opset 17, one output."""
    return b"\x08\x09" + field(GRAPH, graph + field(OUTPUT, field(1, b"z"))) + field(8, b"\x10\x11")


def flood(number: int, count: int, inside: Sequence[int] = ()) -> bytes:
    """Return a model with `count` empty fields of a graph, or of something inside it."""
    content = field(number, b"") * count
    for outer in inside:
        content = field(outer, content)
    return model(content)


def nested(depth: int) -> bytes:
    """Return graphs inside attributes inside nodes inside graphs."""
    content = b""
    for _ in range(depth):
        content = field(NODE, field(ATTRIBUTE, field(6, content)))
    return model(content)


def packed_numbers() -> bytes:
    """Return a weight of 20 million integers, a byte each in the file and eight in memory."""
    return model(field(INITIALIZER, b"\x10\x07" + field(7, bytes(20 << 20))))


def sound() -> onnx.ModelProto:
    """Return a small network: a convolution and a ReLU."""
    return proto([node("Conv", ["x", "w"], ["y"]), node("Relu", ["y"], ["z"])], constants(w=(6, 4, 3, 3)))


def outside(tensor: TensorProto, location: str, **more: str) -> TensorProto:
    """Point a tensor at a file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def fifo() -> str:
    """Return the path of a pipe: whoever opens it waits for ever."""
    path = marker().with_name("pipe")
    if not path.exists():
        os.mkfifo(path)
    return str(path)


def link() -> str:
    """Return the path of a symbolic link to a file of the system."""
    path = marker().with_name("link")
    if not path.is_symlink():
        path.symlink_to("/etc/passwd")
    return str(path)


def outer_weight(location: str, **more: str) -> bytes:
    """Return a model whose weight lies outside."""
    made = sound()
    outside(made.graph.initializer[0], location, **more)
    return made.SerializeToString()


def scalar() -> TensorProto:
    """Return a tensor of one number, outside."""
    return outside(TensorProto(name="k", data_type=1, dims=[1]), fifo())


def location_only() -> bytes:
    """Return a model whose weight says that it lies outside, and not where."""
    made = sound()
    made.graph.initializer[0].data_location = TensorProto.EXTERNAL
    return made.SerializeToString()


def keys_only() -> bytes:
    """Return a model whose weight lies inside, and names a file all the same."""
    made = sound()
    made.graph.initializer[0].external_data.add(key="location", value=fifo())
    return made.SerializeToString()


def in_attribute(name: str) -> bytes:
    """Return a model with a tensor outside in one of the places that an attribute has for it."""
    made = sound()
    attribute = made.graph.node[0].attribute.add(name="extra")
    inner = helper.make_graph([node("Identity", ["k"], ["o"])], "inner", [], [], [scalar()])
    if name == "tensor":
        attribute.t.CopyFrom(scalar())
        attribute.type = onnx.AttributeProto.TENSOR
    elif name == "mislabelled tensor":
        attribute.t.CopyFrom(scalar())
        attribute.type = onnx.AttributeProto.INT
    elif name == "tensors":
        attribute.tensors.append(scalar())
    elif name == "sparse tensor":
        attribute.sparse_tensor.values.CopyFrom(scalar())
    elif name == "graph":
        attribute.g.CopyFrom(inner)
        attribute.type = onnx.AttributeProto.GRAPH
    else:
        attribute.graphs.append(inner)
    return made.SerializeToString()


def sparse_weight() -> bytes:
    """Return a model with a sparse weight outside."""
    made = sound()
    made.graph.sparse_initializer.add().values.CopyFrom(scalar())
    return made.SerializeToString()


def without_outputs() -> bytes:
    """Return a model without outputs."""
    made = sound()
    del made.graph.output[:]
    return made.SerializeToString()


def many_nodes(count: int) -> bytes:
    """Return a chain of ReLUs."""
    one = [node("Relu", [f"v{number}"], [f"v{number + 1}"]).SerializeToString() for number in range(count)]
    return model(b"".join(field(NODE, item) for item in one))


def damaged(number: int, claimed: int) -> bytes:
    """Return the sound model with a field behind it that claims more bytes than there are."""
    return sound().SerializeToString() + field(number, b"abc", claimed)


OUTSIDE: dict[str, Made] = {
    "path upwards": lambda: outer_weight("../../etc/passwd"),
    "absolute path": lambda: outer_weight("/etc/passwd", offset="0", length="16"),
    "symbolic link": lambda: outer_weight(link()),
    "pipe": lambda: outer_weight(fifo()),
    "address": lambda: outer_weight("http://169.254.169.254/latest"),
    "empty path": lambda: outer_weight(""),
    "only said to be outside": location_only,
    "inside, and a path as well": keys_only,
    **{
        f"in an attribute: {name}": (lambda name=name: in_attribute(name))
        for name in ("tensor", "mislabelled tensor", "tensors", "sparse tensor", "graph", "graphs")
    },
    "sparse weight": sparse_weight,
}
"""Row 48: `external-data-refused`."""

BROKEN: dict[str, tuple[Made, str]] = {
    "length of 2 GiB": (lambda: damaged(7, 1 << 31), "invalid-onnx"),
    "length of 2^63": (lambda: damaged(7, 1 << 63), "invalid-onnx"),
    "length without end": (lambda: sound().SerializeToString() + b"\x3a" + b"\xff" * 12, "invalid-onnx"),
    "inner length over the outer one": (lambda: model(field(NODE, b"\x0a\x7fabc")), "invalid-onnx"),
    "wire type 3": (lambda: b"\x08\x09" + b"\x0b" * 40, "invalid-onnx"),
    "wire type 7": (lambda: b"\x08\x09" + b"\x0f" * 40, "invalid-onnx"),
    "nested 20 deep": (lambda: nested(20), "unsupported-operator"),
    "nested 10,000 deep": (lambda: nested(10_000), "invalid-onnx"),
    "10^6 empty nodes": (lambda: flood(NODE, 10**6), "model-too-large"),
    "10^7 empty attributes": (lambda: flood(ATTRIBUTE, 10**7, [NODE]), "model-too-large"),
    "10^7 empty inputs of a node": (lambda: flood(1, 10**7, [NODE]), "model-too-large"),
    "10^6 empty initializers": (lambda: flood(INITIALIZER, 10**6), "model-too-large"),
    "10^6 empty value infos": (lambda: flood(VALUE_INFO, 10**6), "model-too-large"),
    "10^6 empty external data": (lambda: flood(13, 10**6, [INITIALIZER]), "model-too-large"),
    "249,990 empty nodes": (lambda: flood(NODE, 249_990), "model-too-large"),
    "20,001 nodes": (lambda: many_nodes(20_001), "model-too-large"),
    "2 * 10^7 packed integers": (packed_numbers, "model-too-large"),
    "zeros behind the version": (lambda: b"\x08\x09" + bytes(4096), "invalid-onnx"),
    "a TensorFlow model": (lambda: b"\x08\x01\x12\x05\x0a\x03\xff\xfe\xfd" + bytes(16), "invalid-onnx"),
    "only a version": (lambda: b"\x08\x09" * 10, "invalid-onnx"),
    "no outputs": (without_outputs, "invalid-graph"),
}
"""Rows 39 and 49."""


def legal() -> bytes:
    """Return the sound network."""
    return bytes(sound().SerializeToString())
