"""What the contract demands of every use: the same numbers, everywhere, whatever is removed."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import Tensor, fx

from app.domain.opsets import DEFAULT, LOWEST
from tests.worker.graph.contracts.uses import Session, Use
from tests.zoo import Entry
from tests.zoo.masking import masked
from worker.export.graph_json import decode, encode, tensor_key
from worker.graph.extents import shapes_of
from worker.graph.groups import channel_plan
from worker.graph.ops import OPS, Grid, op_of
from worker.graph.ops.parametric import TRANSPOSED, rows_first
from worker.graph.ops.table import module_of
from worker.graph.rewrite import fold_batchnorm
from worker.graph.slicing import Slicer
from worker.graph.write_onnx import write_float

TOLERANCE = 1e-5
DRAWS = 2


def close(found: Any, wanted: Sequence[Tensor]) -> None:
    """Assert that outputs equal: shapes and dtypes, and numbers within 1e-5 of the largest."""
    got = list(found) if isinstance(found, list | tuple) else [found]
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        if not one.is_floating_point():
            assert bool((one == other).all())
            continue
        largest = max(float(other.abs().max()), 1e-6)
        assert float((one.detach() - other.detach()).abs().max()) <= TOLERANCE * largest


def agrees(module: fx.GraphModule, use: Use) -> None:
    """Check outputs and computed shapes at both batch sizes."""
    for batch in use.batches:
        x = use.inputs(batch)
        values = Values(module)
        close(values.run(x), use.expected(batch))
        computed = shapes_of(module, batch)
        assert {name: tuple(item.shape) for name, item in values.found.items()}.items() <= computed.items()
        _keeps_its_promises(module, values.found)


class Values(fx.Interpreter):
    """Runs a graph and notes every value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op != "output":
            self.found[n.name] = value
        return value


def _keeps_its_promises(module: fx.GraphModule, values: Mapping[str, Tensor]) -> None:
    """Check the table's words on each node: `unsigned`, and a grid that is kept."""
    for node in module.graph.nodes:
        op = op_of(module, node)
        if op is None:
            continue
        value = values[node.name]
        if op.unsigned:
            assert float(value.min()) >= 0
        if op.grid is Grid.keep:
            source = values[node.args[0].name]
            allowed = torch.cat([source.reshape(-1), _fill(node, source)])
            assert bool(torch.isin(value.double(), allowed.double()).all())


def _fill(node: fx.Node, like: Tensor) -> Tensor:
    """Return what padding may add to the values of a grid."""
    return torch.tensor([0.0, float(node.kwargs.get("value") or 0.0)], dtype=like.dtype)  # type: ignore[arg-type]


def writes(module: fx.GraphModule, use: Use) -> None:
    """Check the ONNX file of a graph in ONNX Runtime, of the usual opset and of the lowest."""
    for opset in (DEFAULT, LOWEST):
        data = write_float(fold_batchnorm(module), opset)
        onnx.checker.check_model(data)
        session = Session(data)
        for batch in use.batches:
            close(session.run(use.inputs(batch)), use.expected(batch))


def stores(module: fx.GraphModule, use: Use) -> None:
    """Check that a checkpoint's graph and tensors make the same network again."""
    folded = fold_batchnorm(module)
    again = decode(json.loads(json.dumps(encode(folded))), _tensors(folded))
    x = use.inputs(2)
    wanted = folded(x)
    close(again(x), list(wanted) if isinstance(wanted, tuple) else [wanted])


def _tensors(module: fx.GraphModule) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            found[f"{node.target}.value"] = getattr(module, str(node.target))
        if node.op != "call_module":
            continue
        leaf: Any = module_of(module, node)
        for name in (OPS[type(leaf)].leaf or leaf).tensors:
            item = leaf
            for part in name.split("."):
                item = getattr(item, part, None)
            if item is not None:
                stored = rows_first(leaf) if isinstance(leaf, TRANSPOSED) and name == "weight" else item
                found[tensor_key(node.name, name)] = stored.detach()
    return found


def flows(module: fx.GraphModule, use: Use) -> None:
    """Check channels: removable or frozen as the use says; sliced equals masked, also as an ONNX file."""
    folded = fold_batchnorm(last_output(module))
    plan = channel_plan(folded)
    if not use.ids:
        front = next(group for group in plan.groups if "before" in group.producers)
        reason = front.frozen or ""
        assert (use.frozen in reason) if use.frozen else not reason, f"frozen: {reason!r}"
    rng = np.random.default_rng(0)
    slicer, x = Slicer(folded, plan), use.inputs(3)
    for draw in range(DRAWS):
        kept = {group.id: _some(rng, group.channels) for group in plan.groups if group.frozen is None}
        sliced = slicer.sliced(kept)
        wanted = [masked(folded, plan, kept, cast(Entry, Inputs(use)))(x)]
        close(sliced(x), wanted)
        if draw == 0 and kept:
            close(Session(write_float(sliced)).run(x), wanted)


class Inputs:
    """A use's inputs, laid out as the zoo's networks have them."""

    def __init__(self, use: Use) -> None:
        self._use = use

    def inputs(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Return a batch."""
        return (self._use.inputs(batch, seed),)


def _some(rng: np.random.Generator, count: int) -> list[int]:
    return sorted(rng.choice(count, int(rng.integers(1, count + 1)), replace=False).tolist())


def last_output(module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy with the last of its outputs alone."""
    clone = copy.deepcopy(module)
    output = next(node for node in clone.graph.nodes if node.op == "output")
    if isinstance(output.args[0], tuple | list):
        output.args = (output.args[0][-1],)
    clone.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    clone.delete_all_unused_submodules()
    clone.recompile()
    return clone
