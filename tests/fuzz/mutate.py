"""Mutations of valid files: bytes, protobuf fields, JSON values, nodes, names and numbers."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import onnx

from tests.security.zips import Item, items_of, packed
from worker.graph.folding import FOLDS
from worker.graph.ops import ATEN
from worker.graph.ops.table import ONNX

NUMBERS = (0, 1, -1, 2, 3, 7, 8, 15, 16, 17, 255, 256, 4096, 65_535, 65_536, 10**6, 1_000_003, 2**24, 2**31 - 1, 2**31,
           -(2**31), 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"))
JUNK: tuple[Any, ...] = (
    *NUMBERS, *FLOATS, 1 << 70, None, True, False, "", "x", "self", "__class__", "\u00e9\u00b2\ufb01", "a" * 5000, [],
    {}, [[]], [None], {"as_int": -1}, {"as_none": True}, {"as_tensor": {"name": "x"}}, {"as_string": "x"},
    {"as_ints": [1, 1]}, {"as_float": 1e308}, {"as_sym_int": {"as_name": "s"}},
)  # fmt: skip
SMALL_JSON = 400
Random = random.Random


def of_bytes(data: bytes, rng: Random) -> bytes:
    """Return bytes with a few places flipped, cut, repeated, zeroed, moved or overwritten by odd numbers."""
    held = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, size = rng.randrange(len(held) + 1), rng.choice((1, 2, 4, 8, 64, 1024))
        kind = rng.randrange(6)
        if kind == 0 and held:
            held[at % len(held)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            held[at : at + size] = rng.randbytes(size)
        elif kind == 2:
            del held[at : at + size]
        elif kind == 3:
            held[at:at] = held[at : at + size]
        elif kind == 4:
            held[at : at + 8] = (rng.choice(NUMBERS) % (1 << 64)).to_bytes(8, "little")
        else:
            held[at : at + size] = bytes(size)
    return bytes(held[: rng.randrange(len(held) + 1)] if rng.random() < 0.1 else held)


def _shuffled(items: Any, rng: Random) -> None:
    """Reorder, drop, repeat or swap entries of a list or repeated field, in place."""
    if not len(items):
        return
    kind, one, two = rng.randrange(4), rng.randrange(len(items)), rng.randrange(len(items))
    held = [copy.deepcopy(item) for item in items]
    if kind == 0:
        held[one], held[two] = held[two], held[one]
    elif kind == 1:
        del held[one]
    elif kind == 2:
        held.insert(two, copy.deepcopy(held[one]))
    else:
        held.insert(two, held.pop(one))
    del items[:]
    items.extend(held)


# ONNX


@cache
def _op_types() -> tuple[str, ...]:
    return tuple(sorted({*ONNX, *FOLDS}))


def _onnx_node(model: Any, rng: Random) -> None:
    node = rng.choice(model.graph.node)
    kind = rng.randrange(5)
    if kind == 0:
        node.op_type = rng.choice(_op_types())
    elif kind == 1 and node.input:
        names = [name for other in model.graph.node for name in (*other.input, *other.output)]
        node.input[rng.randrange(len(node.input))] = rng.choice([*names, "", "nowhere"])
    elif kind == 2:
        _shuffled(node.input, rng)
    elif kind == 3:
        _shuffled(node.output, rng)
    else:
        node.name = node.domain = rng.choice(("", "x", "ai.onnx", "\u00b2", "a" * 5000))


def _onnx_attribute(model: Any, rng: Random) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    if not nodes:
        return
    node = rng.choice(nodes)
    attribute = rng.choice(node.attribute)
    kind = rng.randrange(6)
    if kind == 0:
        attribute.i = rng.choice(NUMBERS)
    elif kind == 1 and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
    elif kind == 2:
        _shuffled(attribute.ints, rng)
    elif kind == 3:
        attribute.f = rng.choice(FLOATS)
    elif kind == 4:
        attribute.s = rng.choice((b"", b"SAME_UPPER", b"VALID", b"nearest", b"\xff", b"mean"))
        attribute.type = rng.choice((1, 2, 3, 6, 7, 8))
    else:
        _shuffled(node.attribute, rng)


def _onnx_tensor(model: Any, rng: Random) -> None:
    tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute if a.HasField("t"))]
    if not tensors:
        return
    tensor = rng.choice(tensors)
    kind = rng.randrange(5)
    if kind == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
    elif kind == 1:
        _shuffled(tensor.dims, rng)
    elif kind == 2:
        tensor.data_type = rng.randrange(25)
    elif kind == 3:
        tensor.raw_data = of_bytes(tensor.raw_data, rng)
    elif len(tensor.raw_data) >= 8:  # shape arithmetic lives in small integer tensors
        at = 8 * rng.randrange(len(tensor.raw_data) // 8)
        odd = (rng.choice(NUMBERS) % (1 << 64)).to_bytes(8, "little")
        tensor.raw_data = tensor.raw_data[:at] + odd + tensor.raw_data[at + 8 :]


def _onnx_graph(model: Any, rng: Random) -> None:
    lists = (model.graph.node, model.graph.input, model.graph.output, model.graph.initializer, model.opset_import)
    kind = rng.randrange(3)
    if kind == 0:
        _shuffled(rng.choice(lists), rng)
    elif kind == 1:
        dims = [dim for item in (*model.graph.input, *model.graph.output) for dim in item.type.tensor_type.shape.dim]
        if dims:
            rng.choice(dims).dim_value = rng.choice(NUMBERS)
    elif model.opset_import:
        model.opset_import[0].version = rng.choice((1, 7, 11, 13, 18, 21, 25, 99, -1))


def of_onnx(data: bytes, rng: Random) -> bytes:
    """Return an ONNX file with nodes, attributes, tensors or the graph's lists changed."""
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice((_onnx_node, _onnx_attribute, _onnx_tensor, _onnx_graph))(model, rng)
    return bytes(model.SerializeToString())


# torch.export archives


@cache
def _targets() -> tuple[str, ...]:
    return tuple(f"torch.ops.{name}" for name in sorted(ATEN))


@cache
def _entries(data: bytes) -> tuple[Item, ...]:
    return tuple(items_of(data))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return ([path] if path else []) + [found for key in keys for found in _paths(value[key], (*path, key))]


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def _json_value(document: Any, rng: Random) -> None:
    """Put junk in the place of any value, or the value of another place."""
    paths = _paths(document)
    path = rng.choice(paths)
    value = rng.choice(JUNK) if rng.random() < 0.7 else copy.deepcopy(_at(document, rng.choice(paths)))
    _at(document, path[:-1])[path[-1]] = value


def _json_number(document: Any, rng: Random) -> None:
    paths = [path for path in _paths(document) if type(_at(document, path)) is int]
    if paths:
        path = rng.choice(paths)
        _at(document, path[:-1])[path[-1]] = rng.choice(NUMBERS)


def _program_node(graph: Any, rng: Random) -> None:
    node = rng.choice(graph["nodes"]) if graph["nodes"] else None
    kind = rng.randrange(5)
    if kind == 0 or node is None:
        _shuffled(graph["nodes"], rng)
    elif kind == 1:
        node["target"] = rng.choice(_targets())
    elif kind == 2:
        _shuffled(node["inputs"], rng)
    elif kind == 3:
        _shuffled(node["outputs"], rng)
    elif node["inputs"]:
        other = rng.choice(graph["nodes"])["inputs"]
        rng.choice(node["inputs"])["arg"] = copy.deepcopy(rng.choice(other or node["inputs"])["arg"])


def _program(document: Any, rng: Random) -> None:
    """Change a program in one place."""
    module = document["graph_module"]
    change = rng.choice((_json_value, _json_number, _program_node, _program_node))
    part = rng.choice((module["graph"], module["signature"], module["graph"]["nodes"], document))
    change(module["graph"] if change is _program_node else part, rng)


def of_program(data: bytes, rng: Random) -> bytes:
    """Return an archive with values, numbers, nodes or names of its JSON changed, or an entry's bytes."""
    held, kind = list(_entries(data)), rng.randrange(8)
    ending = "model_weights_config.json" if kind == 0 else "models/model.json"
    place = next(index for index, item in enumerate(held) if item.name.endswith(ending))
    if kind == 1:
        place = rng.randrange(len(held))
        held[place] = Item(held[place].name, of_bytes(held[place].data, rng))
        return packed(held)
    if kind == 2:
        _shuffled(held, rng)
        return packed(held)
    document = json.loads(held[place].data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if ending != "models/model.json":
            rng.choice((_json_value, _json_number))(document, rng)
            continue
        try:
            _program(document, rng)
        except (KeyError, TypeError, AttributeError, IndexError):  # an earlier change took the place away
            break
    return packed([*held[:place], Item(held[place].name, json.dumps(document).encode()), *held[place + 1 :]])


STRUCTURED: dict[str, Callable[[bytes, Random], bytes]] = {"onnx": of_onnx, "pt2": of_program}


def mutated(reader: str, seeds: dict[str, bytes], number: int, seed: int = 0) -> bytes:
    """Return the `number`-th mutated file of a reader: the same one every time."""
    rng = random.Random(f"{reader} {seed} {number}")
    data = seeds[rng.choice(sorted(seeds))]
    return STRUCTURED[reader](data, rng) if rng.random() < 0.75 else of_bytes(data, rng)
