"""Our own reader of torch.export archives: zip, JSON and raw buffers; nothing in the file can run.

`torch.export.load` unpickles and evaluates what a crafted file holds; this reader never calls it. It reads
`models/model.json` (a graph of aten calls), `data/weights/model_weights_config.json` (dtype, sizes, strides, offset)
and the raw little-endian buffers (`worker.graph.archive_pt2`), and ignores every other entry.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from app.domain.zip_laws import Buffer
from worker.graph.archive_pt2 import DTYPES, PROGRAM, Archive
from worker.graph.aten_constants import FOLDS, INTEGERS, fold
from worker.graph.build import Builder, identifier
from worker.graph.errors import NetworkRefused, unsupported
from worker.graph.ops import ATEN, AtenCall, read_aten_call
from worker.graph.ops.table import Values
from worker.graph.weights import Held, pt2_weights, replaced

MAX_NODES = 20_000
SYMBOLIC = {"aten.sym_size.int", "aten.sym_size.default"}
IGNORED = {
    "aten._assert_scalar.default",
    "aten.sym_constrain_range_for_size.default",
    "aten._assert_tensor_metadata.default",
}
# of a stored program's scalar types, layouts and the like only the dtype means something here
_ENUMS = ("as_none", "as_memory_format", "as_layout", "as_device")
MAX_INPUTS = 16
# a symbol by its name, or as sympy.srepr writes it, the way torch.export does
_SYMBOL = re.compile(r"[A-Za-z_]\w{0,63}|Symbol\('[A-Za-z_]\w{0,63}'(?:, [a-z_]{1,32}=(?:True|False)){0,8}\)", re.ASCII)


def read_pt2(data: Buffer, weights: Mapping[str, Tensor] | None = None) -> fx.GraphModule:
    """Return the canonical graph of a torch.export archive (static or symbolic batch).

    `weights` take the place of the archive's own, by name. Raises NetworkRefused (invalid-archive, compressed-entry,
    overlapping-entries, unsafe-format, unsupported-operator, invalid-tensor, invalid-graph, dynamic-shape-unsupported,
    model-too-large, weights-mismatch).
    """
    archive = Archive(data)
    try:
        return _Reader(archive, weights).read()
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise NetworkRefused("invalid-graph", f"the program is not laid out as expected: {error!r}"[:300]) from error


class _Reader:
    """Replays the aten calls of the program through the op table."""

    def __init__(self, archive: Archive, weights: Mapping[str, Tensor] | None = None) -> None:
        program = archive.json(PROGRAM)
        module = program["graph_module"]
        self.graph = module["graph"]
        self.signature = module["signature"]
        state = archive.tensors("weights")
        self.tensors = {**archive.tensors("constants"), **state}
        if weights is not None:
            self.tensors = replaced(Held(self.tensors, pt2_weights(state), archive.places), weights)
        self.builder = Builder()
        self.values: dict[str, Any] = {}
        self.names: dict[str, str] = {}

    def read(self) -> fx.GraphModule:
        self._check_targets()
        self._inputs()
        for node in self.graph["nodes"]:
            self._node(node)
        outputs = [item["user_output"] for item in self.signature["output_specs"] if "user_output" in item]
        if not outputs:
            raise NetworkRefused("invalid-graph", "the network has no output")
        if any("as_tensor" not in item["arg"] for item in outputs):
            raise NetworkRefused("unsupported-operator", "outputs must be tensors")
        names = [item["arg"]["as_tensor"]["name"] for item in outputs]
        self.builder.output(*(self._lookup(name, "output") for name in names))
        return self.builder.finish()

    def _check_targets(self) -> None:
        nodes = self.graph["nodes"]
        if len(nodes) > MAX_NODES:
            raise NetworkRefused("model-too-large", f"{len(nodes)} nodes; at most {MAX_NODES} are read")
        bad = [(_label(node), _target(node)) for node in nodes if not _known(_target(node))]
        if bad:
            raise unsupported(dict(Counter(target for _, target in bad)), bad)

    def _inputs(self) -> None:
        users = []
        for item in self.signature["input_specs"]:
            kind, spec = next(iter(item.items()))
            if kind == "user_input":
                users.append(spec["arg"]["as_tensor"]["name"])
            elif kind in ("parameter", "buffer", "tensor_constant"):
                self._held(spec, kind)
            elif kind == "custom_obj":
                raise NetworkRefused("unsafe-format", "an object is stored beside the weights, as a pickle or script")
            else:
                raise NetworkRefused("unsupported-operator", f"an input of kind {kind!r}")
        if not 1 <= len(users) <= MAX_INPUTS:
            raise NetworkRefused("unsupported-operator", f"{len(users)} inputs; 1 to {MAX_INPUTS} are read")
        for name in users:
            self._input(name)

    def _input(self, name: str) -> None:
        meta = self.graph["tensor_values"][name]
        sizes = [size.get("as_int") for size in meta["sizes"]]
        dtype = DTYPES.get(meta["dtype"])
        if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes[1:]) or dtype is None:
            raise NetworkRefused("dynamic-shape-unsupported", f"every dimension but the batch must be fixed: {sizes}")
        batch = sizes[0] if isinstance(sizes[0], int) else None
        if batch is None:
            _check_symbol(meta["sizes"][0])
        if self.builder.batch not in (None, batch):
            raise NetworkRefused("dynamic-shape-unsupported", "inputs with different batches")
        kept = torch.float32 if dtype.is_floating_point else dtype
        self.values[name] = self.builder.input(name, sizes[1:], batch, kept)

    def _held(self, spec: Any, kind: str) -> None:
        """Bind a parameter, buffer or constant to its value; counters that nothing reads may be missing."""
        key = spec.get({"parameter": "parameter_name", "buffer": "buffer_name"}.get(kind, "tensor_constant_name"))
        name = spec["arg"]["name"]
        if key in self.tensors:
            self.values[name] = self.tensors[key]
            self.names[name] = str(key)

    def _node(self, node: Any) -> None:
        target = _target(node)
        outputs = node["outputs"]
        if target in IGNORED:
            return
        if target in SYMBOLIC:
            self._sym_size(node)
            return
        inputs = {item["name"]: self._argument(item["arg"], _label(node)) for item in node["inputs"]}
        if target in INTEGERS:
            self.values[_symbol(outputs[0]["as_sym_int"])] = INTEGERS[target](*inputs.values())
            return
        call = AtenCall(target, self._name(node), inputs)
        self._bind(outputs, self._computed(call))

    def _computed(self, call: AtenCall) -> Values:
        if not any(isinstance(item, fx.Node) for item in _flat(call.inputs.values())):
            return fold(call)
        if call.target not in ATEN:
            raise unsupported({call.target: 1}, [(call.name, call.target)])
        return read_aten_call(self.builder, call)

    def _bind(self, outputs: Any, found: Values) -> None:
        """Give a node's results their names."""
        values = [found] if isinstance(found, Tensor | fx.Node) else found
        names: list[str | None] = []
        for item in outputs:
            kind, arg = next(iter(item.items()))
            names += [part["name"] for part in arg] if kind == "as_tensors" else [(arg or {}).get("name")]
        for name, value in zip(names, values, strict=False):
            if name in self.values:
                raise NetworkRefused("invalid-graph", f"two nodes produce {name!r}")
            if name and value is not None:
                self.values[name] = value

    def _sym_size(self, node: Any) -> None:
        value = self._argument(node["inputs"][0]["arg"], _label(node))
        dim = int(node["inputs"][1]["arg"]["as_int"])
        self.values[_symbol(node["outputs"][0]["as_sym_int"])] = self.builder.shape(value)[dim]

    def _name(self, node: Any) -> str:
        """Name a parametric op after its weight (a.in_proj_weight -> a_in_proj), any other after its result."""
        for item in node["inputs"]:
            listed = item["arg"].get("as_tensors") or [item["arg"].get("as_tensor") or {}]
            for part in listed:
                owner, _, last = self.names.get(part.get("name", ""), "").rpartition(".")
                if last.endswith("weight") or last.startswith("weight_"):
                    return identifier(f"{owner}.{last.removesuffix('weight') if last.endswith('weight') else ''}")
        return _label(node)

    def _argument(self, arg: Any, label: str) -> Any:
        kind, value = next(iter(arg.items()))
        if kind == "as_tensor":
            return self._lookup(value["name"], label)
        if kind == "as_tensors":
            return [self._lookup(item["name"], label) for item in value]
        if kind in ("as_float", "as_floats"):  # infinities are stored as text
            return float(value) if kind == "as_float" else [float(item) for item in value]
        if kind in ("as_int", "as_bool", "as_string", "as_ints", "as_bools"):
            return value
        if kind in ("as_sym_int", "as_sym_ints"):
            return self._size(value) if kind == "as_sym_int" else [self._size(item) for item in value]
        if kind in ("as_optional_tensor", "as_optional_tensors"):
            listed = [self._argument(item, label) for item in ([value] if kind == "as_optional_tensor" else value)]
            return listed[0] if kind == "as_optional_tensor" else listed
        if kind == "as_scalar_type":
            return DTYPES.get(value)
        if kind in _ENUMS:
            return None
        slug = "unsafe-format" if kind == "as_custom_obj" else "unsupported-operator"
        raise NetworkRefused(slug, f"{label!r} takes an argument of kind {kind!r}")

    def _lookup(self, name: str, label: str) -> Any:
        if name not in self.values:
            raise NetworkRefused("invalid-graph", f"{label!r} reads {name!r}, which nothing before it produces")
        return self.values[name]

    def _size(self, value: Any) -> int:
        if isinstance(value.get("as_int"), int):
            return int(value["as_int"])
        return int(self._lookup(_symbol(value), "a size"))


def _check_symbol(size: Any) -> None:
    """Refuse a batch that is anything but one plain symbol: nothing is ever evaluated."""
    text = (size.get("as_expr") or {}).get("expr_str")
    if not isinstance(text, str) or not _SYMBOL.fullmatch(text):
        raise NetworkRefused("dynamic-shape-unsupported", f"the batch must be a number or a symbol: {text!r}"[:300])


def _symbol(value: Any) -> str:
    return str(value.get("as_name", ""))


def _target(node: Any) -> str:
    return str(node["target"]).removeprefix("torch.ops.")


def _label(node: Any) -> str:
    outputs = node.get("outputs") or [{}]
    first = outputs[0]
    return str((first.get("as_tensor") or {}).get("name") or node["target"])


def _known(target: str) -> bool:
    return any(target in table for table in (ATEN, SYMBOLIC, IGNORED, FOLDS, INTEGERS))


def _flat(items: Any) -> list[Any]:
    """Return arguments with lists opened."""
    return [part for item in items for part in (item if isinstance(item, list) else [item])]
