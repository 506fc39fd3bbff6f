"""The pruned float network and its encodings: what they hold, and what quantizing by them gives."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from worker.export.agreement import accuracy
from worker.export.encodings import NamedWriter, encodings_json
from worker.export.pruned import write_pruned
from worker.export.verify import run_float, run_onnx, verify
from worker.hardware.measure import open_session
from worker.quant.network import CompressedNetwork

from .conftest import Lab


def test_pruned_when_channels_go_then_smaller_than_the_float_network_and_nothing_is_rounded(lab: Lab) -> None:
    assignment = lab.assignment(0.5, [4], [8])
    pruned, whole = lab.evaluator.pruned(assignment), lab.evaluator.folded
    kept, held = (sum(item.numel() for item in module.parameters()) for module in (pruned, whole))
    assert kept < 0.4 * held
    codes = np.unique(pruned.get_submodule("fc").weight.numpy()[0])  # type: ignore[union-attr, operator]
    assert len(codes) == lab.evaluator.compress(assignment).layers["fc"].weight_int.shape[1]  # type: ignore[union-attr]


def test_pruned_when_no_channel_goes_then_the_float_network_itself(lab: Lab) -> None:
    assert lab.evaluator.pruned(lab.assignment(1.0, [4], [8])) is lab.evaluator.folded


def test_pruned_when_repaired_then_nearer_to_the_labels_than_cut_alone(lab: Lab) -> None:
    assignment, data = lab.assignment(0.5, [8], [8]), lab.data["evaluation"]
    assert data.labels is not None
    found = {
        repair: accuracy(run_float(lab.evaluator.pruned(assignment, repair), data.inputs)[0], data.labels.numpy())
        for repair in ("sequential", "none")
    }
    assert found["sequential"] > 0.9
    assert found["sequential"] > found["none"] + 0.1


def test_encodings_when_written_then_aimets_layout_under_the_float_files_names(
    lab: Lab, mixed: CompressedNetwork
) -> None:
    files = write_pruned(mixed, lab.evaluator.pruned(mixed.assignment))
    document, graph = json.loads(files.encodings), onnx.load_from_string(files.onnx).graph
    assert set(document) == {
        "version", "activation_encodings", "param_encodings", "quantizer_args", "excluded_layers",
    }  # fmt: skip
    assert document["version"] == "1.0.0" and document["excluded_layers"] == []
    for item in (*document["activation_encodings"], *document["param_encodings"]):
        assert set(item) == {"name", "bw", "dtype", "enc_type", "is_sym", "offset", "scale"}
        assert item["dtype"] == "INT" and len(item["scale"]) == len(item["offset"]) >= 1
    weights = {item["name"]: item for item in document["param_encodings"]}
    stem = mixed.layers["stem"]
    assert stem.weight_scale is not None
    assert weights["stem.weight"]["bw"] == stem.bits and weights["stem.weight"]["enc_type"] == "PER_CHANNEL"
    assert weights["stem.weight"]["offset"] == [-(2 ** (stem.bits - 1))] * len(stem.weight_scale)
    assert weights["stem.weight"]["scale"] == [float(scale) for scale in stem.weight_scale]
    assert set(weights) == {item.name for item in graph.initializer if item.name.endswith(".weight")}
    first = document["activation_encodings"][0]
    grid = mixed.grids["x"]
    assert first["name"] == graph.input[0].name == "x"
    assert (first["bw"], first["offset"], first["scale"]) == (grid.bits, [-grid.zero_point], [grid.scale])


def test_encodings_when_layers_stay_float_then_they_are_excluded_by_name(lab: Lab) -> None:
    net = lab.compress(0.75, [32, 8], [32])
    writer = NamedWriter(lab.evaluator.pruned(net.assignment))
    writer.write()
    document = json.loads(encodings_json(net, writer))
    floats = {name for name, layer in net.layers.items() if layer.bits == 32}
    assert document["activation_encodings"] == [] and floats
    assert set(document["excluded_layers"]) == floats
    assert {item["name"] for item in document["param_encodings"]} == {f"{n}.weight" for n in {*net.layers} - floats}


def test_encodings_when_a_runtime_quantizes_by_them_then_the_accuracy_of_the_candidate(lab: Lab) -> None:
    net, data = lab.compress(0.875, [8], [8]), lab.data["evaluation"]
    files = write_pruned(net, lab.evaluator.pruned(net.assignment))
    assert data.labels is not None
    outputs = by_encodings(files.onnx, json.loads(files.encodings), data.inputs[0].numpy())
    simulated = net.forward(*data.inputs).numpy()
    wanted, found = (accuracy(item, data.labels.numpy()) for item in (simulated, outputs))
    assert abs(found - wanted) <= 0.01
    assert (outputs.argmax(1) == simulated.argmax(1)).mean() >= 0.98


def test_verify_when_pruned_files_are_sound_then_their_agreement_is_told(lab: Lab, mixed: CompressedNetwork) -> None:
    report = verify(lab.subject(mixed), lab.files(mixed))
    assert report.failures == []
    told = report.to_json()["pruned"]
    assert set(told) == {"pruned-onnx", "pruned-pt2"}
    assert all(item["max_error"] < 1e-4 and item["pictures"] == 256 for item in told.values())


def test_verify_when_torch_export_could_not_write_then_a_note_says_why(lab: Lab, mixed: CompressedNetwork) -> None:
    files = lab.files(mixed)
    assert files.pruned is not None
    without = replace(files, pruned=replace(files.pruned, pt2=None, why="torch.export: a reason"))
    report = verify(lab.subject(mixed), without)
    assert report.failures == [] and set(report.pruned) == {"pruned-onnx"}
    assert any("torch.export: a reason" in note for note in report.notes)
    assert set(without.pruned.contents) == {"pruned-onnx", "encodings"}  # type: ignore[union-attr]


def by_encodings(model: bytes, document: dict[str, Any], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a float file as a tool does that knows the encodings alone: weights and tensors rounded where they are named.

    Written for this test from the layout's description: it shares nothing with tightfit's own quantizers.
    """
    proto = onnx.load_from_string(model)
    held = {item.name: item for item in proto.graph.initializer}
    for item in document["param_encodings"]:
        tensor = held[item["name"]]
        tensor.CopyFrom(numpy_helper.from_array(rounded(numpy_helper.to_array(tensor), item), item["name"]))
    grids = {item["name"]: item for item in document["activation_encodings"]}
    nodes = []
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = f"{name}/q" if name in grids else name
        nodes.append(node)
    quantized = [*quantizers(proto, grids, {item.name for item in proto.graph.input})]
    for node in nodes:
        quantized.append(node)
        quantized += quantizers(proto, grids, set(node.output))
    del proto.graph.node[:]
    proto.graph.node.extend(quantized)
    session = open_session(proto.SerializeToString())
    found: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def rounded(values: NDArray[np.float32], item: dict[str, Any]) -> NDArray[np.float32]:
    shape = (-1, *[1] * (values.ndim - 1))
    scale, offset = (np.array(item[key], np.float32).reshape(shape) for key in ("scale", "offset"))
    codes = np.clip(np.rint(values / scale) - offset, 0, 2 ** item["bw"] - 1)
    return ((codes + offset) * scale).astype(np.float32)


def quantizers(proto: onnx.ModelProto, grids: dict[str, Any], names: set[str]) -> list[onnx.NodeProto]:
    """Return Div, Round, Clip, Mul behind each named tensor that has an encoding."""
    found = []
    for name in sorted(names & set(grids)):
        item = grids[name]
        low = item["offset"][0]
        values = {"scale": item["scale"][0], "low": low, "high": 2 ** item["bw"] - 1 + low}
        for key, value in values.items():
            proto.graph.initializer.append(numpy_helper.from_array(np.float32(value), f"{name}/{key}"))
        found += [
            onnx.helper.make_node("Div", [name, f"{name}/scale"], [f"{name}/units"]),
            onnx.helper.make_node("Round", [f"{name}/units"], [f"{name}/whole"]),
            onnx.helper.make_node("Clip", [f"{name}/whole", f"{name}/low", f"{name}/high"], [f"{name}/codes"]),
            onnx.helper.make_node("Mul", [f"{name}/codes", f"{name}/scale"], [f"{name}/q"]),
        ]
    return found


@pytest.mark.parametrize("repair", ["sequential", "fast"])
def test_pruned_onnx_when_run_then_torchs_numbers(lab: Lab, repair: str) -> None:
    assignment, inputs = lab.assignment(0.5, [8], [8]), lab.data["evaluation"].inputs
    pruned = lab.evaluator.pruned(assignment, repair)
    files = write_pruned(lab.evaluator.compress(assignment, repair), pruned)
    wanted = run_float(pruned, inputs)[0]
    assert np.abs(run_onnx(files.onnx, inputs)[0] - wanted).max() < 1e-4 * np.abs(wanted).max()
    with torch.no_grad():
        assert np.abs(pruned(*inputs).numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()
