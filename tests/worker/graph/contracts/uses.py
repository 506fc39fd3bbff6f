"""Uses of ops that the contract checks: each is a small network, layer -> op -> layer, as a user's file holds it.

The network's outputs are what the op gives and what the layer behind it makes of it. A use says how channels of the
layer in front must fare: removable, or frozen for a reason.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

Form = Literal["symbolic", "fixed", "decomposed"]
NEWEST = 26  # what ONNX Runtime reads
FIXED_BATCH = 2
IDS = 10  # integer inputs lie below
_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


@dataclass(frozen=True, eq=False)
class Use:
    """One use. `shape` is what the op reads, without the batch; channels lie first in it, or `last`.

    `frozen` is what the reason must say where the channels in front of the op all stay; `ids` makes the op read the
    network's integer input itself. Without `bias`, removed channels are zero, also where they are multiplied.
    """

    name: str
    shape: tuple[int, ...] = (6, 8, 8)
    last: bool = False
    out_last: bool | None = None
    frozen: str = ""
    ids: bool = False
    batches: tuple[int, ...] = (1, 7)
    bias: bool = True

    def inputs(self, batch: int, seed: int = 0) -> Tensor:
        """Return a batch of the network's input."""
        generator = torch.Generator().manual_seed(seed)
        if self.ids:
            return torch.randint(0, IDS, (batch, *self.shape), generator=generator)
        return torch.randn(batch, *self.source_shape, generator=generator)

    @functools.cache  # noqa: B019 - uses live as long as the tests
    def expected(self, batch: int) -> list[Tensor]:
        """Return the source's outputs for the batch of `inputs`."""
        return self.wanted(self.inputs(batch))

    def wanted(self, x: Tensor) -> list[Tensor]:
        """Return the source's outputs."""
        raise NotImplementedError

    @property
    def source_shape(self) -> tuple[int, ...]:
        """Return the network input's shape: four channels in place of the op's."""
        if self.ids:
            return self.shape
        return (*self.shape[:-1], 4) if self.last else (4, *self.shape[1:])

    @property
    def reads_out_last(self) -> bool:
        """Tell whether the layer behind the op is a linear one."""
        return self.last if self.out_last is None else self.out_last


class Network(nn.Module):
    """The layer in front, the op, the layer behind."""

    def __init__(self, use: AtenUse) -> None:
        super().__init__()
        torch.manual_seed(3)
        channels = use.shape[-1] if use.last else use.shape[0]
        self.before: nn.Module = nn.Identity() if use.ids else layer(4, channels, len(use.shape) + 1, use.last)
        made = use.function
        if not use.bias:
            _without_bias(self.before)
            _without_bias(getattr(made, "other", None))
        self.op = made if isinstance(made, nn.Module) else Call(made)
        with torch.no_grad():
            value = self.op(self.before(use.inputs(2)))
        self.behind: nn.Module | None = None
        if value.is_floating_point() and value.dim() > 1:
            last = use.reads_out_last
            self.behind = layer(value.shape[-1] if last else value.shape[1], 3, value.dim(), last)

    def forward(self, x: Tensor) -> Any:
        value = self.op(self.before(x))
        return value if self.behind is None else (value, self.behind(value))


def _without_bias(layer: Any) -> None:
    if layer is not None:
        nn.init.zeros_(layer.bias)


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, value: Tensor) -> Tensor:
        return self.function(value)


def layer(ins: int, outs: int, rank: int, last: bool) -> nn.Module:
    """Return a layer for values of `rank` dimensions whose channels lie second or last."""
    if last or rank == 2:
        return nn.Linear(ins, outs)
    return _CONVOLUTIONS[rank](ins, outs, 1)


@dataclass(frozen=True, eq=False)
class AtenUse(Use):
    """A use as torch.export writes it."""

    function: Callable[..., Any] = torch.relu
    decomposed: bool = False

    @functools.cached_property
    def network(self) -> nn.Module:
        """Return the source network, in eval mode."""
        return Network(self).eval()

    def wanted(self, x: Tensor) -> list[Tensor]:
        """Return the source network's outputs."""
        with torch.no_grad():
            found = self.network(x)
        return list(found) if isinstance(found, tuple) else [found]

    def program(self, form: Form) -> torch.export.ExportedProgram:
        """Return torch.export's program."""
        shapes = None if form == "fixed" else ({0: torch.export.Dim("batch")},)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.export.export(self.network, (self.inputs(FIXED_BATCH),), dynamic_shapes=shapes)
            return found.run_decompositions() if form == "decomposed" else found

    @functools.cache  # noqa: B019 - uses live as long as the tests
    def file(self, form: Form) -> bytes:
        """Return the archive."""
        buffer = io.BytesIO()
        torch.export.save(self.program(form), buffer)
        return buffer.getvalue()


@dataclass(frozen=True, eq=False)
class OnnxUse(Use):
    """A use as an ONNX file: `nodes` read `y` and give `z`. `since` and `until` are the opsets of this form."""

    nodes: Sequence[onnx.NodeProto] = ()
    held: Mapping[str, Any] = field(default_factory=dict)
    since: int = 11
    until: int = NEWEST

    def opsets(self) -> list[int]:
        """Return the opsets at which one of the ops changed, from the first to the newest."""
        found = {self.since, self.until}
        for node in self.nodes:
            for schema in _versions(node.op_type):
                found |= {schema} if self.since < schema < self.until else set()
        return sorted(found)

    def wanted(self, x: Tensor) -> list[Tensor]:
        """Return what ONNX Runtime computes from the file."""
        return self._session.run(x)

    @functools.cache  # noqa: B019 - uses live as long as the tests
    def file(self, opset: int, batch: str | int = "n") -> bytes:
        """Return the serialized model."""
        outputs = ["z"] if self._behind is None else ["z", "u"]
        nodes = [*self._before[0], *self.nodes, *(self._behind[0] if self._behind else [])]
        held = {**self._before[1], **self.held, **(self._behind[1] if self._behind else {})}
        return _model(nodes, held, opset, (batch, self), outputs)

    @functools.cached_property
    def _session(self) -> Session:
        return Session(self.file(self.until))

    @functools.cached_property
    def _before(self) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
        if self.ids:
            return [helper.make_node("Identity", ["x"], ["y"])], {}
        channels = self.shape[-1] if self.last else self.shape[0]
        nodes, held = _onnx_layer(("x", "y", "before"), (4, channels), len(self.shape) + 1, self.last)
        return nodes, held if self.bias else {**held, "before.bias": np.zeros(channels, dtype=np.float32)}

    @functools.cached_property
    def _behind(self) -> tuple[list[onnx.NodeProto], dict[str, Any]] | None:
        nodes, held = self._before
        first = _model([*nodes, *self.nodes], {**held, **self.held}, self.until, ("n", self), ["z"])
        value = Session(first).run(self.inputs(2))[0]
        if not value.is_floating_point() or value.dim() < 2:
            return None
        last = self.reads_out_last
        return _onnx_layer(("z", "u", "behind"), (value.shape[-1] if last else value.shape[1], 3), value.dim(), last)


@functools.cache
def _versions(op_type: str) -> tuple[int, ...]:
    return tuple(schema.since_version for schema in onnx.defs.get_all_schemas_with_history() if schema.name == op_type)


def _onnx_layer(
    names: tuple[str, str, str], sizes: tuple[int, int], rank: int, last: bool
) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    source, result, name = names
    rng = np.random.default_rng(len(name))
    ins, outs = sizes
    bias = rng.normal(size=outs).astype(np.float32)
    if last or rank == 2:
        held = {f"{name}.weight": rng.normal(size=(ins, outs)).astype(np.float32) / 2, f"{name}.bias": bias}
        product = helper.make_node("MatMul", [source, f"{name}.weight"], [f"{name}_p"], name=name)
        return [product, helper.make_node("Add", [f"{name}_p", f"{name}.bias"], [result])], held
    weight = rng.normal(size=(outs, ins, *[1] * (rank - 2))).astype(np.float32) / 2
    node = helper.make_node("Conv", [source, f"{name}.weight", f"{name}.bias"], [result], name=name)
    return [node], {f"{name}.weight": weight, f"{name}.bias": bias}


def _model(
    nodes: Sequence[onnx.NodeProto],
    held: Mapping[str, Any],
    opset: int,
    source: tuple[str | int, Use],
    outputs: Sequence[str],
) -> bytes:
    batch, use = source
    kind = TensorProto.INT64 if use.ids else TensorProto.FLOAT
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", kind, [batch, *use.source_shape])],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return bytes(model.SerializeToString())


class Session:
    """A model in ONNX Runtime."""

    def __init__(self, data: bytes) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # starting threads would take longer than running the model
        options.log_severity_level = 4
        self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def run(self, x: Tensor) -> list[Tensor]:
        """Return the outputs."""
        return [torch.from_numpy(np.asarray(item)) for item in self._session.run(None, {self._input: x.numpy()})]


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Return normal float32 numbers."""
    return np.asarray(np.random.default_rng(seed).normal(size=shape), dtype=np.float32)


def floats(*shape: int, seed: int = 0) -> Tensor:
    """Return a tensor of normal numbers."""
    return torch.from_numpy(normal(*shape, seed=seed))


def aten(target: str, *args: Any, **kwargs: Any) -> Callable[[Tensor], Any]:
    """Return a function that calls exactly this aten target on a value, with arguments behind it."""
    name, overload = target.split(".")
    called = getattr(getattr(torch.ops.aten, name), overload)
    return lambda value: called(value, *args, **kwargs)


class Pair(nn.Module):
    """A function of two values: the op's input, and what another layer of as many channels makes of it."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], channels: int = 6, rank: int = 4) -> None:
        super().__init__()
        self.function, self.other = function, layer(6, channels, rank, rank == 3)

    def forward(self, value: Tensor) -> Tensor:
        return self.function(value, self.other(value))


class Held(nn.Module):
    """A function of the op's input and constants, which the file holds as buffers."""

    def __init__(self, function: Callable[..., Tensor], *constants: Tensor) -> None:
        super().__init__()
        self.function, self.count = function, len(constants)
        for index, constant in enumerate(constants):
            self.register_buffer(f"c{index}", constant)

    def forward(self, value: Tensor) -> Tensor:
        return self.function(value, *(getattr(self, f"c{index}") for index in range(self.count)))
