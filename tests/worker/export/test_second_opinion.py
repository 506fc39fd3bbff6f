"""A second runtime beside ONNX Runtime: what it is told of, and that nothing it does fails an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from app.domain.graph import Port
from app.domain.lifecycle import Verification
from app.domain.opsets import DEFAULT, LOWEST
from worker.export.agreement import Agreement
from worker.export.onnx_qdq import write_qdq
from worker.export.report_view import checks
from worker.export.second_opinion import Opinion, _notes, is_available, run_openvino, second_opinion
from worker.export.verify import RELOADED, VerificationReport, simulate, verify
from worker.quant.network import CompressedNetwork

from .conftest import Lab

needs_openvino = pytest.mark.skipif(not is_available(), reason="openvino is absent: pip install 'tightfit[openvino]'")
SCORES, VALUES = Port("logits", (10,)), Port("mask", (3, 8, 8))


def rows(lab: Lab) -> list[Any]:
    return [item.numpy() for item in lab.data["evaluation"].head(RELOADED).inputs]


@pytest.mark.skipif(is_available(), reason="openvino is installed")
def test_verify_when_no_second_runtime_is_installed_then_nothing_is_said(lab: Lab, mixed: CompressedNetwork) -> None:
    report = verify(lab.subject(mixed), lab.files(mixed))
    assert report.second is None and report.to_json()["second_opinion"] is None
    assert not any("OpenVINO" in note for note in report.notes)


@needs_openvino
@pytest.mark.parametrize("opset", [LOWEST, 17, DEFAULT])
@pytest.mark.parametrize(("weights", "acts"), [([8], [8]), ([4], [8]), ([3, 5, 2, 6, 7], [8])])
def test_second_opinion_when_openvino_runs_the_file_then_it_follows_the_simulation(
    lab: Lab, weights: list[int], acts: list[int], opset: int
) -> None:
    net = lab.compress(1.0, weights, acts)
    simulated = [item[:RELOADED] for item in simulate(net, lab.data["evaluation"].inputs)]
    found = second_opinion(write_qdq(net, opset=opset), rows(lab), simulated, lab.graph.outputs)
    assert found is not None and found.error is None and found.agreement is not None
    assert (found.agreement.top1, found.agreement.pictures) >= (0.99, RELOADED)
    assert found.agreement.sqnr_db > 30
    assert found.notes == ()


@needs_openvino
def test_verify_when_openvino_is_installed_then_its_agreement_is_in_the_report_and_nothing_leaves_the_machine(
    lab: Lab, mixed: CompressedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    report = verify(lab.subject(mixed), lab.files(mixed))
    assert report.state is Verification.verified
    told = report.to_json()["second_opinion"]
    assert told["runtime"] == "OpenVINO" and told["version"] and told["error"] is None
    assert told["agreement"]["pictures"] == RELOADED and told["agreement"]["top1"] > 0.98
    facts = dict(checks({"verification": report.to_json(), "manifest": {}}))
    assert f"Same answers in OpenVINO {told['version']}" in facts
    assert list(tmp_path.iterdir()) == []  # its telemetry would keep an id there


@needs_openvino
def test_verify_when_openvino_computes_something_else_then_noted_and_verified_all_the_same(
    lab: Lab, mixed: CompressedNetwork
) -> None:
    subject, files = lab.subject(mixed), lab.files(mixed)
    simulated = [item[:RELOADED] for item in simulate(mixed, subject.evaluation.inputs)]
    other = [np.roll(item, 1, axis=1) for item in simulated]
    found = second_opinion(files.onnx, rows(lab), other, lab.graph.outputs)
    assert found is not None and found.error is None
    assert len(found.notes) == 1 and "computes something else" in found.notes[0]
    assert "measure the accuracy there" in found.notes[0]


@needs_openvino
def test_second_opinion_when_the_file_is_none_it_can_run_then_an_error_and_a_note(lab: Lab) -> None:
    found = second_opinion(unheard_of(), rows(lab), [], [])
    assert found is not None and found.agreement is None
    assert found.error is not None and found.error.startswith("RuntimeError: ")
    assert found.notes == (f"OpenVINO {found.version} did not run the ONNX file: {found.error}",)
    assert found.to_json()["agreement"] is None


def test_run_openvino_when_its_process_ends_badly_then_what_it_said_last(lab: Lab) -> None:
    with pytest.raises(RuntimeError, match="Unheard" if is_available() else "No module named 'openvino'"):
        run_openvino(unheard_of(), rows(lab))


def unheard_of() -> bytes:
    """Return a file of an operator that no runtime knows."""
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 1, 8, 8])
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Unheard", ["x"], ["y"])], "g", [value], [result])
    return bytes(helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize(
    ("port", "top1", "sqnr", "said"),
    [
        (SCORES, 1.0, 20.0, ""),
        (SCORES, 0.98, 25.0, ""),
        (SCORES, 0.979, 25.0, "logits follows the simulation within 25.0 dB, 97.9 % of the answers are the same;"),
        (SCORES, 1.0, 19.9, "logits follows the simulation within 19.9 dB, 100.0 % of the answers are the same;"),
        (VALUES, 0.5, 21.0, ""),
        (VALUES, 0.5, 1.8, "mask follows the simulation within 1.8 dB; measure"),
    ],
)
def test_notes_when_outputs_differ_strongly_then_the_output_and_by_how_much(
    port: Port, top1: float, sqnr: float, said: str
) -> None:
    told = _notes("2026.4.1", {port.name: Agreement(top1, 0.1, sqnr, 256, 256)}, [port])
    assert (len(told) == 1 and said in told[0]) if said else told == ()


def test_opinion_when_there_are_several_outputs_then_the_agreement_is_the_worst_ones() -> None:
    near, far = Agreement(1.0, 0.0, 60.0, 9, 9), Agreement(0.9, 1.0, 12.0, 9, 9)
    found = Opinion("1", {"a": near, "b": far})
    assert found.agreement is far
    assert found.to_json()["agreement"] == far.to_json() and set(found.to_json()["outputs"]) == {"a", "b"}
    assert Opinion("1").agreement is None


def test_report_when_a_second_runtime_was_asked_then_two_facts_beside_the_first() -> None:
    report = VerificationReport(second=Opinion("2026.4.1", {"y": Agreement(0.9935, 0.2, 37.46, 256, 256)}))
    facts = dict(checks({"verification": report.to_json(), "manifest": {}}))
    assert facts["Same answers in OpenVINO 2026.4.1"] == "99.35 %"
    assert facts["Outputs in OpenVINO 2026.4.1 follow within"] == "37.5 dB"
