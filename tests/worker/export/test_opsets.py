"""Exported files at every opset on offer: the same answers, the same kernels, and the opset they declare."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from app.domain.opsets import DEFAULT, LOWEST, OpsetTooLow
from tests.worker.export.written import written
from worker.export.audit import differences, fused_ops, opset_of, oversized
from worker.export.export import export_all
from worker.export.onnx_qdq import UNPACKER_BYTES, QdqWriter
from worker.export.pruned import write_pruned
from worker.export.verify import run_onnx
from worker.quant.network import CompressedNetwork

from .conftest import Lab

OPSETS = range(LOWEST, DEFAULT)


@pytest.mark.parametrize("opset", OPSETS)
def test_write_qdq_when_of_a_lower_opset_then_answers_kernels_and_tensors_are_the_defaults(
    lab: Lab, mixed: CompressedNetwork, opset: int
) -> None:
    data, usual = written(mixed, opset=opset), written(mixed)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    assert (opset_of(data), opset_of(usual)) == (opset, DEFAULT)
    pictures = lab.evaluator.pictures("full").inputs
    np.testing.assert_array_equal(run_onnx(data, pictures)[0], run_onnx(usual, pictures)[0])
    assert fused_ops(data) == fused_ops(usual)
    assert fused_ops(data)["QLinearConv"] == 7
    assert (differences(data, mixed), oversized(data, mixed)) == ([], [])


@pytest.mark.parametrize("opset", [LOWEST, 18])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_write_qdq_when_all_layers_have_the_same_width_then_packed_and_folded_below_the_default_opset(
    lab: Lab, bits: int, opset: int
) -> None:
    net = lab.compress(1.0, [bits], [8])
    data, usual = written(net, opset=opset), written(net)
    pictures = lab.evaluator.pictures("full").head(64).inputs
    np.testing.assert_array_equal(run_onnx(data, pictures)[0], run_onnx(usual, pictures)[0])
    found = fused_ops(data)
    assert (found["QLinearConv"], found["QLinearAdd"], found["QGemm"]) == (7, 2, 1)
    assert not {"Conv", "Cast", "Mod", "Add", "Sub", "Div", "Mul"} & set(found)
    assert differences(data, net) == []
    packed = [layer for layer in net.layers.values() if layer.weight_int is not None and layer.weight_int.size > 1600]
    assert len(packed) == 4
    if bits == 4:  # INT4 is younger: the bit stream and its unpacking nodes take its place
        assert 0 < len(data) - len(usual) < 8 * (UNPACKER_BYTES + 150)
        assert len(data) < len(written(lab.compress(1.0, [8], [8]), opset=opset))
    else:
        assert len(data) == len(usual)


def test_write_qdq_when_numbers_have_16_bits_then_lower_opsets_are_refused_with_the_lowest_that_can(lab: Lab) -> None:
    net = lab.compress(1.0, [8], [16])
    for opset in OPSETS:
        with pytest.raises(OpsetTooLow, match="16-bit numbers; the lowest that can is 21") as error:
            written(net, opset=opset)
        assert (error.value.opset, error.value.lowest) == (opset, DEFAULT)
    assert opset_of(written(net, opset=DEFAULT)) == DEFAULT


@pytest.mark.parametrize("opset", [LOWEST, 17])
def test_write_pruned_when_of_a_lower_opset_then_the_same_answers_and_every_encoding_has_its_tensor(
    lab: Lab, mixed: CompressedNetwork, opset: int
) -> None:
    pruned = lab.evaluator.pruned(mixed.assignment)
    files, usual = write_pruned(mixed, pruned, opset), write_pruned(mixed, pruned)
    pictures = lab.evaluator.pictures("full").head(64).inputs
    np.testing.assert_array_equal(run_onnx(files.onnx, pictures)[0], run_onnx(usual.onnx, pictures)[0])
    model = onnx.load_from_string(files.onnx)
    assert opset_of(files.onnx) == opset
    names = {name for node in model.graph.node for name in node.input}
    document = json.loads(files.encodings)
    assert {item["name"] for item in (*document["activation_encodings"], *document["param_encodings"])} <= names


def test_export_all_when_another_opset_is_asked_for_then_verified_and_the_report_names_it(
    lab: Lab, mixed: CompressedNetwork, tmp_path: Path
) -> None:
    request = lab.request(mixed)
    low = export_all(replace(request, opset=LOWEST), tmp_path / "low")
    usual = export_all(request, tmp_path / "usual")
    assert low.report.failures == []
    assert (low.report.opset, usual.report.opset) == (LOWEST, DEFAULT)
    digests = [{item.kind: item.sha256 for item in found.files} for found in (low, usual)]
    assert {kind for kind in digests[0] if digests[0][kind] == digests[1][kind]} >= {"checkpoint", "pruned-pt2"}
    assert digests[0]["onnx"] != digests[1]["onnx"]
    assert '"opset": 13' in (tmp_path / "low" / "report.json").read_text()
    assert "Opset of the ONNX file" in (tmp_path / "low" / "report.html").read_text()


@pytest.mark.parametrize("opset", [LOWEST, DEFAULT])
@pytest.mark.parametrize("spare", range(-4, 5))
def test_oversized_when_packing_saves_about_what_unpacking_takes_then_either_way_is_within_the_bound(
    lab: Lab, mixed: CompressedNetwork, spare: int, opset: int
) -> None:
    layer = mixed.layers["fc"]
    ints = np.zeros((1, 2 * UNPACKER_BYTES + spare), np.int8)
    small = replace(layer, bits=4, weight_int=ints, weight_scale=np.ones(1, np.float32))
    writer = QdqWriter(mixed, opset=opset)
    writer._codes("fc", ints, 4, 0)
    model = helper.make_model(helper.make_graph(writer.nodes, "g", [], [], writer.initializers))
    assert oversized(model.SerializeToString(), replace(mixed, layers={"fc": small})) == []
