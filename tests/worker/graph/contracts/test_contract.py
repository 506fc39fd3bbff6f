"""The contract of the op table: each use of each op is read, run, written, stored and cut with the same numbers."""

from __future__ import annotations

import pytest

from tests.worker.graph.contracts import elementwise
from tests.worker.graph.contracts.checks import agrees, flows, stores, writes
from tests.worker.graph.contracts.uses import FIXED_BATCH, FORMS, AtenUse, OnnxUse
from worker.graph.read import read_network

TABLES = (elementwise,)
ATEN = [use for table in TABLES for use in table.ATEN]
ONNX = [use for table in TABLES for use in table.ONNX]


@pytest.mark.parametrize("use", ATEN, ids=lambda use: use.name)
def test_aten_use_when_read_run_written_stored_and_cut_then_equals_torch(use: AtenUse) -> None:
    module = read_network(use.file("symbolic"))
    agrees(module, use, use.wanted)
    writes(module, use, use.wanted)
    stores(module, use)
    flows(module, use)


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("use", ATEN, ids=lambda use: use.name)
def test_aten_use_when_exported_in_another_form_then_equals_torch_at_any_batch(use: AtenUse, form: str) -> None:
    if form == "decomposed" and not use.decomposed:
        pytest.skip("torch has no decomposition of it")
    agrees(read_network(use.file(form)), use, use.wanted)


@pytest.mark.parametrize("use", ONNX, ids=lambda use: use.name)
def test_onnx_use_when_read_run_written_stored_and_cut_then_equals_onnxruntime(use: OnnxUse) -> None:
    module = read_network(use.file(use.until))
    agrees(module, use, use.wanted)
    writes(module, use, use.wanted)
    stores(module, use)
    flows(module, use)


@pytest.mark.parametrize("use", ONNX, ids=lambda use: use.name)
def test_onnx_use_when_of_another_opset_or_fixed_batch_then_equals_onnxruntime(use: OnnxUse) -> None:
    for opset in use.opsets():
        agrees(read_network(use.file(opset)), use, use.wanted)
    agrees(read_network(use.file(use.since, FIXED_BATCH)), use, use.wanted)
