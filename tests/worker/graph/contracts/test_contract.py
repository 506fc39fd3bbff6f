"""The contract of the op table: each use of each op is read, run, written, stored and cut with the same numbers."""

from __future__ import annotations

import pytest

from tests.worker.graph.contracts import elementwise, joins, layers, moves, norms, pooling
from tests.worker.graph.contracts.checks import agrees, flows, stores, writes
from tests.worker.graph.contracts.uses import FIXED_BATCH, AtenUse, OnnxUse
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
