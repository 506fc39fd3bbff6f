"""Nothing stands in the op table, or among what is folded, that no use of the contract reads."""

from __future__ import annotations

import functools
import json
import zipfile
from io import BytesIO

import onnx
import pytest
import torch

from tests.worker.graph.contracts import folds
from tests.worker.graph.contracts.test_contract import ATEN, ONNX
from worker.graph import aten_constants, folding
from worker.graph.ops import ATEN as ATEN_READERS
from worker.graph.ops import ONNX as ONNX_READERS
from worker.graph.ops import OPS, op_of
from worker.graph.read import read_network


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
