"""Hostile programs: .pt2 archives whose JSON asks for what must not be done, or lies about graph and tensors."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from tests.security.archives import items
from tests.security.pickles import checkpoint, evil_pickle, marker
from tests.security.zips import Item, changed, packed
from tests.worker.graph.nets import exported, make

Json = dict[str, Any]
Made = Callable[[], bytes]
PROGRAM, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS, SAMPLE = "data/constants/model_constants_config.json", "data/sample_inputs/model.pt"
CODE = "__import__('pathlib').Path({!r}).touch()"
MILLION = 1_000_000


@cache
def _text(ending: str) -> bytes:
    return next(item.data for item in items() if item.name.endswith(ending))


def document(ending: str) -> Any:
    """Return a copy of a JSON entry of the sound archive."""
    return json.loads(_text(ending))


def with_documents(*more: Item, **documents: Any) -> bytes:
    """Return the sound archive with `program`, `weights` or `constants` replaced and entries added."""
    endings = {"program": PROGRAM, "weights": WEIGHTS, "constants": CONSTANTS}
    held = list(items())
    for name, value in documents.items():
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        held = changed(held, endings[name], data=data)
    return packed([*held, *more])


def code() -> str:
    """Return an expression that would touch the marker."""
    return CODE.format(str(marker()))


def graph_changed(change: Callable[[Json], None]) -> bytes:
    """Return the sound archive with its graph changed in place."""
    program = document(PROGRAM)
    change(program["graph_module"]["graph"])
    return with_documents(program=program)


def signature_changed(change: Callable[[Json], None]) -> bytes:
    """Return the sound archive with its signature changed in place."""
    program = document(PROGRAM)
    change(program["graph_module"]["signature"])
    return with_documents(program=program)


def weight_changed(**changes: Any) -> bytes:
    """Return the sound archive with fields of one weight's meta changed (a matrix of 5 x 16)."""
    index = document(WEIGHTS)
    meta = index["config"]["head.weight"]["tensor_meta"]
    meta.update({key: _ints(value) if isinstance(value, list) else value for key, value in changes.items()})
    return with_documents(weights=index)


def _ints(values: list[Any]) -> list[Any]:
    return [{"as_int": value} if isinstance(value, int) else value for value in values]


def pickled(folder: str) -> bytes:
    """Return an archive with a tensor that is stored as a pickle."""
    index = document(WEIGHTS if folder == "weights" else CONSTANTS)
    meta = copy.deepcopy(document(WEIGHTS)["config"]["head.bias"]["tensor_meta"])
    index["config"]["evil"] = {"path_name": "evil", "is_param": False, "use_pickle": True, "tensor_meta": meta}
    return with_documents(Item(f"archive/data/{folder}/evil", evil_pickle(4)), **{folder: index})


def custom_object() -> bytes:
    """Return an archive with a pickled object among its constants and inputs."""
    index, program = document(CONSTANTS), document(PROGRAM)
    index["config"]["obj"] = {"path_name": "custom_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    return with_documents(Item("archive/data/constants/custom_obj_0", evil_pickle(4)), constants=index, program=program)


def custom_input() -> bytes:
    """Return an archive whose signature takes an object."""
    spec = {"custom_obj": {"arg": {"name": "obj", "class_fqn": "__torch__.Evil"}, "custom_obj_name": "obj"}}
    return signature_changed(lambda signature: signature["input_specs"].insert(0, spec))


def object_argument() -> bytes:
    """Return an archive of which a node takes an object."""
    argument = {"name": "x", "arg": {"as_custom_obj": {"name": "obj", "class_fqn": "__torch__.Evil"}}, "kind": 1}
    return graph_changed(lambda graph: graph["nodes"][2]["inputs"].append(argument))


def legacy(folder: str) -> bytes:
    """Return an archive whose tensors lie in one pickle, without an index."""
    index = WEIGHTS if folder == "weights" else CONSTANTS
    held = [item for item in items() if not item.name.endswith(index)]
    return packed([*held, Item(f"archive/data/{folder}/model.pt", checkpoint())])


def sample_payload() -> bytes:
    """Return the sound archive with its sample inputs replaced by a payload."""
    return packed(changed(items(), SAMPLE, data=checkpoint()))


def batch(expression: str) -> Made:
    """Return a maker of an archive whose batch is an expression."""

    def change(graph: Json) -> None:
        graph["tensor_values"]["x"]["sizes"][0] = {"as_expr": {"expr_str": expression, "hint": {"as_int": 2}}}

    return lambda: graph_changed(change)


def input_size(axis: int) -> Made:
    """Return a maker of an archive of which another input size is an expression."""

    def change(graph: Json) -> None:
        graph["tensor_values"]["x"]["sizes"][axis] = {"as_expr": {"expr_str": code(), "hint": {"as_int": 12}}}

    return lambda: graph_changed(change)


def expressions_elsewhere() -> bytes:
    """Return an archive with payloads wherever torch would evaluate expressions and this reader looks at nothing."""
    program = document(PROGRAM)
    for name, value in program["graph_module"]["graph"]["tensor_values"].items():
        if name != "x":
            value["sizes"] = [{"as_expr": {"expr_str": code(), "hint": None}}]
    program["graph_module"]["graph"]["sym_int_values"] = {"s": {"as_expr": {"expr_str": code(), "hint": None}}}
    program["range_constraints"] = {code(): {"min_val": 0, "max_val": None}}
    program["guards_code"] = [code()]
    return with_documents(program=program)


def targets(*names: str) -> Made:
    """Return a maker of an archive whose last nodes call other targets."""

    def change(graph: Json) -> None:
        for node, name in zip(reversed(graph["nodes"]), names, strict=False):
            node["target"] = name

    return lambda: graph_changed(change)


def renamed(graph: Json, step: int, name: str) -> None:
    """Give a node's result another name."""
    graph["nodes"][step]["outputs"] = [{"as_tensor": {"name": name}}]


def first_of(graph: Json, step: int) -> str:
    """Return the name of a node's result."""
    return str(graph["nodes"][step]["outputs"][0]["as_tensor"]["name"])


def cycle(graph: Json) -> None:
    """Let the second node read what the last one makes."""
    graph["nodes"][1]["inputs"][0]["arg"]["as_tensor"]["name"] = first_of(graph, -1)


def dangling(graph: Json) -> None:
    """Let a node read what nothing makes."""
    graph["nodes"][3]["inputs"][0]["arg"]["as_tensor"]["name"] = "nowhere"


def million_nodes(whole: bool) -> bytes:
    """Return an archive of 10^6 nodes: empty ones, or real ones in a chain."""
    program = document(PROGRAM)
    nodes = program["graph_module"]["graph"]["nodes"]
    relu = json.dumps({key: value for key, value in nodes[2].items() if key != "metadata"})
    program["graph_module"]["graph"]["nodes"] = ["HERE"]
    text = json.dumps(program)
    chain = ",".join([relu if whole else "{}"] * MILLION)
    return with_documents(program=text.replace('"HERE"', chain).encode())


def flood(item: str, count: int) -> bytes:
    """Return an archive whose program is one long list."""
    return with_documents(program=("[" + ",".join([item] * count) + "]").encode())


def holding(value: float) -> bytes:
    """Return a network of which one weight is not finite."""
    net = make("plain")
    with torch.no_grad():
        next(net.parameters()).view(-1)[0] = value
    return exported(net)


UNSAFE: dict[str, tuple[Made, str]] = {
    "pickled weight": (lambda: pickled("weights"), "/weights/evil"),
    "pickled constant": (lambda: pickled("constants"), "/constants/evil"),
    "pickled object": (custom_object, "/constants/obj"),
    "object as an input": (custom_input, ""),
    "object as an argument": (object_argument, ""),
    "weights in one pickle": (lambda: legacy("weights"), ""),
    "constants in one pickle": (lambda: legacy("constants"), ""),
}
"""Rows 34 and 35: `unsafe-format`, with the pointer to the entry where there is one."""

LEGAL: dict[str, Made] = {"payload as sample inputs": sample_payload, "payloads never read": expressions_elsewhere}
"""Row 36: accepted, for the entry is never read."""

DYNAMIC: dict[str, Made] = {
    "code as the batch": lambda: batch(code())(),
    "code in a symbol": lambda: batch(f"Symbol({code()})")(),
    "arithmetic as the batch": batch("2*Symbol('s0', integer=True)"),
    "a call as the batch": batch("exit()"),
    "code as a height": input_size(2),
    "code as a weight's size": lambda: weight_changed(sizes=[{"as_expr": {"expr_str": code()}}, 16]),
}
"""Row 37: `dynamic-shape-unsupported`."""

TARGETS: dict[str, tuple[Made, dict[str, int]]] = {
    "torch.os.system": (targets("torch.os.system", "torch.os.system"), {"torch.os.system": 2}),
    "_operator.call": (targets("_operator.call"), {"_operator.call": 1}),
    "builtins": (targets("builtins.eval", "torch.ops.builtins.exec"), {"builtins.eval": 1, "builtins.exec": 1}),
    "custom operator": (targets("torch.ops.evil.run.default"), {"evil.run.default": 1}),
    "higher order": (targets("torch.ops.higher_order.cond"), {"higher_order.cond": 1}),
    "nested attribute": (targets("torch.ops.aten.relu.default.__class__"), {"aten.relu.default.__class__": 1}),
}
"""Row 38: `unsupported-operator` with names and counts."""

GRAPHS: dict[str, tuple[Made, str]] = {
    "cycle": (lambda: graph_changed(cycle), "invalid-graph"),
    "dangling input": (lambda: graph_changed(dangling), "invalid-graph"),
    "duplicate names": (lambda: graph_changed(lambda g: renamed(g, 3, first_of(g, 1))), "invalid-graph"),
    "a name of an input": (lambda: graph_changed(lambda g: renamed(g, 3, "x")), "invalid-graph"),
    "no outputs": (lambda: signature_changed(lambda s: s.update(output_specs=[])), "invalid-graph"),
    "no nodes": (lambda: graph_changed(lambda g: g.update(nodes=[])), "invalid-graph"),
    "nodes of another kind": (lambda: graph_changed(lambda g: g.update(nodes={"a": 1})), "invalid-graph"),
    "10^6 empty nodes": (lambda: million_nodes(False), "model-too-large"),
    "10^6 nodes": (lambda: million_nodes(True), "model-too-large"),
    "10^7 numbers": (lambda: flood("1", 10_000_000), "model-too-large"),
    "10^6 lists": (lambda: flood("[]", MILLION), "model-too-large"),
}
"""Row 39."""

TENSORS: dict[str, Made] = {
    "short buffer": lambda: packed(changed(items(), "weights/weight_9", data=b"\0" * 19)),
    "empty buffer": lambda: packed(changed(items(), "weights/weight_9", data=b"")),
    "larger than stored": lambda: weight_changed(sizes=[5, 17], strides=[17, 1]),
    "negative stride": lambda: weight_changed(strides=[16, -1]),
    "negative size": lambda: weight_changed(sizes=[-5, 16]),
    "negative offset": lambda: weight_changed(storage_offset={"as_int": -1}),
    "offset past the end": lambda: weight_changed(storage_offset={"as_int": 1 << 40}),
    "offset of 2^63": lambda: weight_changed(storage_offset={"as_int": 1 << 63}),
    "sizes of 2^62": lambda: weight_changed(sizes=[1 << 62, 1 << 62]),
    "sizes of 2^62, none of them stored": lambda: weight_changed(sizes=[1 << 62, 0]),
    "overlapping view": lambda: weight_changed(strides=[1, 1]),
    "expanded view": lambda: weight_changed(strides=[0, 1]),
    "half a view": lambda: weight_changed(strides=[8, 1]),
    "stride of 2^62": lambda: weight_changed(strides=[1 << 62, 1]),
    "rank of 1,000": lambda: weight_changed(sizes=[1] * 1000, strides=[1] * 1000),
    "fewer strides than sizes": lambda: weight_changed(strides=[1]),
    "unknown dtype": lambda: weight_changed(dtype=99),
    "complex dtype": lambda: weight_changed(dtype=9),
    "dtype is text": lambda: weight_changed(dtype="float32"),
    "a buffer a thousand times": lambda: shared(1000),
}
"""Row 40: `invalid-tensor`."""


def shared(times: int) -> bytes:
    """Return an archive whose index names the same weight many times."""
    index = document(WEIGHTS)
    for number in range(times):
        index["config"][f"copy.{number}"] = index["config"]["two.0.weight"]
    return with_documents(weights=index)
