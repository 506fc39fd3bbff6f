"""The contract of the op table: each use of each op is read, run, written, stored and cut with the same numbers.

And it is complete: nothing stands in the table, or among what is folded, that no use reads.
"""

from __future__ import annotations

import functools
import json
import zipfile
from io import BytesIO

import onnx
import pytest
import torch

from tests.worker.graph.contracts import elementwise, folds, joins, layers, moves, norms, pooling
from tests.worker.graph.contracts.checks import agrees, flows, stores, writes
from tests.worker.graph.contracts.uses import FIXED_BATCH, AtenUse, OnnxUse
from worker.graph import aten_constants, folding
from worker.graph.ops import ATEN as ATEN_READERS
from worker.graph.ops import ONNX as ONNX_READERS
from worker.graph.ops import OPS, op_of
from worker.graph.read import read_network

TABLES = (elementwise, joins, moves, norms, pooling, layers)
ATEN = [use for table in TABLES for use in table.ATEN]
ONNX = [use for table in TABLES for use in table.ONNX]


@pytest.mark.parametrize("use", ATEN, ids=lambda use: use.name)
def test_aten_use_when_read_run_written_stored_and_cut_then_equals_torch(use: AtenUse) -> None:
    module = read_network(use.file("symbolic"))
    agrees(module, use)
    writes(module, use)
    stores(module, use)
    flows(module, use)


@pytest.mark.parametrize("use", ATEN, ids=lambda use: use.name)
def test_aten_use_when_exported_for_a_fixed_batch_then_equals_torch_at_any_batch(use: AtenUse) -> None:
    agrees(read_network(use.file("fixed")), use)


@pytest.mark.parametrize("use", [use for use in ATEN if use.decomposed], ids=lambda use: use.name)
def test_aten_use_when_decomposed_by_torch_then_equals_torch(use: AtenUse) -> None:
    agrees(read_network(use.file("decomposed")), use)


@pytest.mark.parametrize("use", ONNX, ids=lambda use: use.name)
def test_onnx_use_when_read_run_written_stored_and_cut_then_equals_onnxruntime(use: OnnxUse) -> None:
    module = read_network(use.file(use.until))
    agrees(module, use)
    writes(module, use)
    stores(module, use)
    flows(module, use)


@pytest.mark.parametrize("use", ONNX, ids=lambda use: use.name)
def test_onnx_use_when_of_another_opset_or_fixed_batch_then_equals_onnxruntime(use: OnnxUse) -> None:
    for opset in use.opsets():
        agrees(read_network(use.file(opset)), use)
    agrees(read_network(use.file(use.since, FIXED_BATCH)), use)


@functools.cache
def aten_targets() -> frozenset[str]:
    """Return the aten targets in the files of all uses."""
    files = [use.file("symbolic") for use in ATEN] + [use.file("decomposed") for use in ATEN if use.decomposed]
    found: set[str] = set()
    for data in files:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            name = next(name for name in archive.namelist() if name.endswith("models/model.json"))
            nodes = json.loads(archive.read(name))["graph_module"]["graph"]["nodes"]
        found |= {node["target"].removeprefix("torch.ops.") for node in nodes}
    return frozenset(found)


@functools.cache
def canonical_ops() -> frozenset[str]:
    """Return the names of the table's entries that stand in the graphs read from all uses."""
    modules = [read_network(use.file("symbolic")) for use in ATEN] + [read_network(use.file(use.until)) for use in ONNX]
    return frozenset(op.name for module in modules for node in module.graph.nodes if (op := op_of(module, node)))


def test_op_when_in_the_table_then_some_use_has_it() -> None:
    assert {op.name for op in OPS.values()} - canonical_ops() == set()


def test_aten_target_when_read_then_some_use_has_it() -> None:
    assert set(ATEN_READERS) - aten_targets() == set()


def test_aten_target_when_read_then_torch_has_it() -> None:
    def exists(target: str) -> bool:
        name, overload = target.removeprefix("aten.").rsplit(".", 1)
        return hasattr(torch.ops.aten, name) and overload in getattr(torch.ops.aten, name).overloads()

    assert [target for target in {*ATEN_READERS, *aten_constants.FOLDS} if not exists(target)] == []


def test_onnx_type_when_read_then_some_use_has_it() -> None:
    assert set(ONNX_READERS) - {node.op_type for use in ONNX for node in use.nodes} == set()


@pytest.mark.parametrize("op_type", [*ONNX_READERS, *folding.FOLDS])
def test_onnx_type_when_read_then_onnx_has_it(op_type: str) -> None:
    assert onnx.defs.has(op_type)


def test_fold_when_in_a_table_then_some_use_has_it() -> None:
    assert set(folding.FOLDS) - {op for use in folds.ONNX for op in folds.types(use)} == set()
    assert set(aten_constants.FOLDS) - set(folds.ATEN) == set()
