"""LSTM and GRU from a zero state, one leaf per layer and result."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.graph import flows
from worker.graph.build import Builder, Value
from worker.graph.leaves import Recurrent
from worker.graph.ops.joins import concat
from worker.graph.ops.moves import cut_out, permute, pick
from worker.graph.ops.reshaping import reshape, unsqueeze
from worker.graph.ops.table import (
    AtenCall,
    Cut,
    Grid,
    Leaf,
    OnnxCall,
    Op,
    Options,
    Tensors,
    Values,
    Writer,
    module_of,
    refuse,
    register,
)

KINDS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"LSTM": nn.LSTM, "GRU": nn.GRU}
# the order of gates: ONNX stores i, o, f, c and z, r, h; torch i, f, c, o and r, z, h
FROM_ONNX = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
TO_ONNX = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
PARTS = ("sequence", "cell")
SUFFIXES = ("", "_reverse")
_HELD = tuple(f"core.{which}_l0{end}" for end in SUFFIXES for which in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))


def core(kind: str, held: Sequence[Tensor], batch_first: bool) -> nn.LSTM | nn.GRU:
    """Return one recurrent layer; `held` is w_ih, w_hh, b_ih, b_hh per direction, as torch orders them."""
    hidden, features = held[1].shape[1], held[0].shape[1]
    with torch.device("meta"):
        layer = KINDS[kind](features, hidden, batch_first=batch_first, bidirectional=len(held) == 8)
    for index, tensor in enumerate(held):
        name = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")[index % 4] + SUFFIXES[index // 4]
        setattr(layer, name, nn.Parameter(tensor.detach().float().clone()))
    return layer.eval()


def matrices(leaf: Recurrent) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the weight matrices of a recurrent layer by name, each with the bias that belongs to it."""
    held = dict(leaf.core.named_parameters())
    return {
        name: (item.detach(), held[name.replace("weight", "bias")].detach())
        for name, item in held.items()
        if name.startswith("weight")
    }


def with_matrices(leaf: Recurrent, weights: Mapping[str, Tensor]) -> None:
    """Give a leaf a core of its own with other weight matrices; whoever shared the old one keeps it."""
    kept = dict(leaf.core.named_parameters())
    names = [name.removeprefix("core.") for name in _HELD if name.removeprefix("core.") in kept]
    held = [weights.get(name, kept[name]) for name in names]
    made = core(leaf.cell, held, leaf.batch_first).requires_grad_(False)
    leaf._modules = {**leaf._modules, "core": made}


def add(builder: Builder, value: Value, layer: nn.LSTM | nn.GRU, name: str) -> list[Value]:
    """Add a layer and return its sequence, last hidden states and, of an LSTM, last cell states (a leaf of its own)."""
    sequence = builder.module(name, Recurrent(layer, "sequence"), value)
    found: list[Value] = [sequence, _hidden(builder, sequence, layer, f"{name}_hidden")]
    if isinstance(layer, nn.LSTM):
        found.append(builder.module(f"{name}_cell", Recurrent(copy.copy(layer), "cell"), value))
    return found


def _hidden(builder: Builder, sequence: fx.Node, layer: nn.LSTM | nn.GRU, name: str) -> Value:
    """Return the last hidden states [directions, n, hidden]: the last step forwards, the first one backwards."""
    size, time = layer.hidden_size, 1 if layer.batch_first else 0
    states = []
    for direction, step in enumerate((-1, 0)[: 1 + layer.bidirectional]):
        part = cut_out(builder, sequence, (2, direction * size, (direction + 1) * size, 1), f"{name}_{direction}")
        assert isinstance(part, fx.Node)
        last = pick(builder, part, (time, step), f"{name}_{direction}_last")
        states.append(unsqueeze(builder, last, [0], f"{name}_{direction}_state"))
    return concat(builder, states, 0, name)


def _read(builder: Builder, call: OnnxCall) -> Values:
    kind, weights, recurrences = call.op_type, call.constant(1), call.constant(2)
    if weights is None or recurrences is None or (call.has(4) and not _is_full_length(builder, call)):
        raise refuse(call.name, f"{kind} without constant weights, or with sequences of several lengths")
    _check(call, kind)
    held = _held(call, kind, (weights, recurrences))
    turned = bool(call.attributes.get("layout", 0))
    layer = core(kind, held, turned)
    found = add(builder, call.value(0), layer, call.module_name)
    directions, hidden = len(held) // 4, layer.hidden_size
    return [_apart(builder, found[0], (directions, hidden), call.name), *found[1:]]


def _is_full_length(builder: Builder, call: OnnxCall) -> bool:
    lengths = call.constant(4)
    return lengths is not None and bool((lengths == builder.shape(call.value(0))[0]).all())


def _check(call: OnnxCall, kind: str) -> None:
    """Refuse what torch's layers don't do: other activations, a start state, peepholes, clipping, one-way backwards."""
    attributes = call.attributes
    plain = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}[kind]
    given = [item.decode() if isinstance(item, bytes) else item for item in attributes.get("activations", plain)]
    start = [call.constant(index) for index in (5, 6, 7)]
    if given != plain * (len(given) // len(plain)) or attributes.get("clip") or attributes.get("input_forget"):
        raise refuse(call.name, f"{kind} with activations {given}, clipping or coupled gates")
    if any(
        item is not None and bool((item.as_strided((1,), (1,)) != 0).any() if _flat(item) else (item != 0).any())
        for item in start
    ):
        raise refuse(call.name, f"{kind} from a state other than zero, or with peepholes")
    if attributes.get("direction", "forward") == "reverse" or attributes.get("layout", 0):
        raise refuse(call.name, f"{kind} backwards only, or with the batch first")
    if kind == "GRU" and not attributes.get("linear_before_reset", 0):
        raise refuse(call.name, "GRU with linear_before_reset=0")


def _flat(item: Tensor) -> bool:
    """Tell whether a constant repeats one number over any batch: it must not be compared element by element."""
    return all(stride == 0 or extent == 1 for stride, extent in zip(item.stride(), item.shape, strict=True))


def _held(call: OnnxCall, kind: str, matrices: tuple[Tensor, Tensor]) -> list[Tensor]:
    biases = call.constant(3)
    found = []
    for direction in range(matrices[0].shape[0]):
        pair = [gates(matrix[direction], FROM_ONNX[kind]) for matrix in matrices]
        size = pair[0].shape[0]
        bias = torch.zeros(2 * size) if biases is None else biases[direction]
        found += [*pair, gates(bias[:size], FROM_ONNX[kind]), gates(bias[size:], FROM_ONNX[kind])]
    return found


def gates(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """Re-order the gates along the first dimension."""
    parts = tensor.chunk(len(order))
    return torch.cat([parts[index] for index in order])


def _apart(builder: Builder, value: Value, sizes: tuple[int, int], name: str) -> Value:
    """Return a sequence [t, n, directions * h] as ONNX lays it out: [t, directions, n, h]."""
    length, batch, _ = builder.shape(value)
    apart = reshape(builder, value, [length, batch, *sizes], f"{name}_directions")
    return permute(builder, apart, [0, 2, 1, 3], f"{name}_turned")


def _aten(kind: str) -> Any:
    def read(builder: Builder, call: AtenCall) -> Values:
        states = call.get("hx")
        states = states if isinstance(states, list | tuple) else [states]
        if any(not isinstance(item, Tensor) or not _is_zero(item) for item in states):
            raise refuse(call.name, f"{kind} from a state other than zero")
        if call.get("train", False) and call.get("dropout", 0.0):
            raise refuse(call.name, f"{kind} with dropout in training mode; export model.eval()")
        held, layers = list(call.get("params")), int(call.get("num_layers"))
        if not call.get("has_biases", True):
            held = _with_zeros(held)
        value: Value = call.node("input")
        batch_first = bool(call.get("batch_first", False))
        size, states_ = len(held) // layers, []
        if size != 4 * (1 + bool(call.get("bidirectional", False))):
            raise refuse(call.name, f"{kind} with {len(held)} weights for {layers} layers")
        for index in range(layers):
            layer = core(kind, held[index * size : (index + 1) * size], batch_first)
            name = call.name if layers == 1 else f"{call.name}_l{index}"
            value, *rest = add(builder, value, layer, name)
            states_.append(rest)
        merged = [
            concat(builder, parts, 0, f"{call.name}_states") if layers > 1 else parts[0]
            for parts in zip(*states_, strict=True)
        ]
        return [value, *merged]

    return read


def _is_zero(item: Tensor) -> bool:
    return not bool((item.as_strided((1,), (1,)) if _flat(item) else item).any())


def _with_zeros(held: Sequence[Tensor]) -> list[Tensor]:
    found: list[Tensor] = []
    for index in range(0, len(held), 2):
        zeros = torch.zeros(held[index].shape[0])
        found += [held[index], held[index + 1], zeros, zeros]
    return found


def _write(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    leaf: Any = module_of(writer.module, node)
    layer = leaf.core
    kind = type(layer).__name__
    x = inputs[0] if not layer.batch_first else writer.emit("Transpose", inputs, f"{node.name}_in", perm=[1, 0, 2])
    suffixes = SUFFIXES[: 1 + layer.bidirectional]
    held = [
        _matrix(writer, node, [f"{which}_l0{suffix}" for suffix in suffixes]) for which in ("weight_ih", "weight_hh")
    ]
    biases = [
        torch.cat([gates(getattr(layer, f"{which}_l0{s}").detach(), TO_ONNX[kind]) for which in ("bias_ih", "bias_hh")])
        for s in suffixes
    ]
    held.append(writer.constant(torch.stack(biases), f"{node.name}.b"))
    attributes: dict[str, Any] = {"hidden_size": layer.hidden_size}
    attributes["direction"] = "bidirectional" if layer.bidirectional else "forward"
    if kind == "GRU":
        attributes["linear_before_reset"] = 1
    index = 0 if leaf.part == "sequence" else 2
    found = writer.emit(kind, [x, *held], node.name if index else f"{node.name}_y", output=index, **attributes)
    return found if index else _together(writer, node, found, layer)


def _matrix(writer: Writer, node: fx.Node, names: Sequence[str]) -> str:
    """Write one matrix [directions, gates * h, columns]."""
    layer: Any = module_of(writer.module, node).core
    order = TO_ONNX[type(layer).__name__]
    parts = [writer.matrix(f"{node.name}.{name}", getattr(layer, name).detach(), order) for name in names]
    axes = writer.integers([0], f"{node.name}_axes")
    stacked = [writer.emit("Unsqueeze", [part, axes], f"{node.name}_w") for part in parts]
    return stacked[0] if len(stacked) == 1 else writer.emit("Concat", stacked, f"{node.name}_w", axis=0)


def _together(writer: Writer, node: fx.Node, value: str, layer: Any) -> str:
    """Return [t, directions, n, h] as torch lays it out: [t, n, directions * h], or batch first."""
    order = [2, 0, 1, 3] if layer.batch_first else [0, 2, 1, 3]
    turned = writer.emit("Transpose", [value], f"{node.name}_turned", perm=order)
    sizes = writer.integers([0, 0, layer.hidden_size * (1 + layer.bidirectional)], f"{node.name}_sizes")
    return writer.emit("Reshape", [turned, sizes], node.name)


def _cut(leaf: Any, cut: Cut) -> None:
    """Leave a recurrent layer as it is: every channel stays."""


def _make(options: Options, tensors: Tensors) -> nn.Module:
    held = [tensors[name] for name in _HELD if name in tensors]
    return Recurrent(core(str(options["cell"]), held, bool(options["batch_first"])), str(options["part"]))


register(
    Op(
        "recurrent",
        Recurrent,
        flows.recurrent,
        Grid.new,
        _write,
        {"LSTM": _read, "GRU": _read},
        {"aten.lstm.input": _aten("LSTM"), "aten.gru.input": _aten("GRU")},
        leaf=Leaf(_cut, _make, ("cell", "batch_first", "part"), _HELD),
    )
)
