"""Nothing a file says about an op is passed over in silence: arguments no reader asked for must hold their default."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import onnx
import torch

from worker.graph.build import Builder
from worker.graph.ops.table import ATEN, ONNX, AtenCall, OnnxCall, Values, refuse

IDLE_ATTRIBUTES: dict[str, frozenset[str]] = {
    "AveragePool": frozenset({"kernel_shape"}),
    "BatchNormalization": frozenset({"momentum", "spatial"}),
    "Cast": frozenset({"saturate", "round_mode"}),
    "Conv": frozenset({"kernel_shape"}),
    "ConvTranspose": frozenset({"kernel_shape"}),
    "Dropout": frozenset({"ratio", "seed"}),
    "GRU": frozenset({"hidden_size"}),
    "GroupNormalization": frozenset({"stash_type"}),
    "LSTM": frozenset({"hidden_size"}),
    "LayerNormalization": frozenset({"stash_type"}),
    "MaxPool": frozenset({"storage_order"}),
    "RMSNormalization": frozenset({"stash_type"}),
}
"""By ONNX op type, attributes that change no number at inference: what inputs say as well, training, precision."""

IDLE_ARGUMENTS = frozenset(
    {
        *("momentum", "cudnn_enabled", "cudnn_enable", "benchmark", "deterministic", "allow_tf32"),
        *("p", "dropout", "padding_idx", "scale_grad_by_freq", "sparse", "generator"),
        *("memory_format", "layout", "device", "pin_memory", "non_blocking", "copy", "implicit", "path", "output_size"),
        "half_to_float",
    }
)
"""Names of aten arguments that change no number at inference; what they must not hold, readers check."""


class Asked(dict[str, Any]):
    """Arguments that remember which of them were asked for."""

    def __init__(self, held: dict[str, Any]) -> None:
        super().__init__(held)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return an argument, or the default."""
        self.asked.add(key)
        return super().get(key, default)

    def ignored(self) -> dict[str, Any]:
        """Return the arguments nobody asked for."""
        return {key: item for key, item in self.items() if key not in self.asked}


def read_onnx_call(builder: Builder, call: OnnxCall) -> Values:
    """Return what the table makes of an ONNX node. Raises NetworkRefused where it holds more than the table reads."""
    held = Asked(call.attributes)
    found = ONNX[call.op_type](builder, replace(call, attributes=held))
    idle = IDLE_ATTRIBUTES.get(call.op_type, frozenset())
    defaults = _onnx_defaults(call.op_type, call.opset)
    for key, item in held.ignored().items():
        if key not in idle and (key not in defaults or defaults[key] != item):
            raise refuse(call.name, f"{call.op_type} with {key}={item!r}"[:200])
    return found


def read_aten_call(builder: Builder, call: AtenCall) -> Values:
    """Return what the table makes of an aten call. Raises NetworkRefused where it holds more than the table reads."""
    held = Asked(call.inputs)
    found = ATEN[call.target](builder, replace(call, inputs=held))
    for key, item in held.ignored().items():
        if item is None or key in IDLE_ARGUMENTS or _is_float(item):  # everything floating is float32 here
            continue
        if _aten_defaults(call.target).get(key) != item:
            raise refuse(call.name, f"{call.target} with {key}={item!r}"[:200])
    return found


def _is_float(item: Any) -> bool:
    return isinstance(item, torch.dtype) and item.is_floating_point


@functools.cache
def _onnx_defaults(op_type: str, opset: int) -> dict[str, Any]:
    try:
        schema = onnx.defs.get_schema(op_type, min(opset, onnx.defs.onnx_opset_version()))
    except onnx.defs.SchemaError:
        return {}
    found = {}
    for name, attribute in schema.attributes.items():
        if attribute.default_value.type:
            item = onnx.helper.get_attribute_value(attribute.default_value)
            found[name] = item.decode() if isinstance(item, bytes) else item
    return found


@functools.cache
def _aten_defaults(target: str) -> dict[str, Any]:
    name, overload = target.removeprefix("aten.").rsplit(".", 1)
    schema = getattr(getattr(torch.ops.aten, name), overload)._schema
    return {item.name: item.default_value for item in schema.arguments if item.has_default_value()}
