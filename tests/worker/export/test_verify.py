"""A sound export is verified; a broken one never is."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from app.domain.budget import Budget
from app.domain.cost import count
from app.domain.device import MemoryPool
from app.domain.latency import LatencyTable
from tests.worker.export.written import written
from worker.export.archive import read_archive, write_archive
from worker.export.checkpoint import dequantized, write_checkpoint
from worker.export.recount import recount
from worker.export.verify import Files, VerificationReport, verify
from worker.graph.read import read_network
from worker.graph.write_pt2 import write_pt2
from worker.quant.network import CompressedNetwork

from .conftest import Lab, host_device

Break = Callable[[Files], Files]


@pytest.fixture(scope="module")
def sound(lab: Lab, mixed: CompressedNetwork) -> VerificationReport:
    return verify(lab.subject(mixed), lab.files(mixed))


def test_verify_when_export_is_sound_then_verified_with_all_figures(
    sound: VerificationReport, lab: Lab, mixed: CompressedNetwork
) -> None:
    assert sound.failures == [] and sound.state.value == "verified"
    assert sound.agreement is not None and sound.agreement.top1 >= 0.995 and sound.agreement.pictures == 1100
    assert sound.checkpoint is not None and sound.checkpoint.max_error == 0.0
    assert sound.accuracy_simulated is not None and sound.accuracy_onnx is not None
    assert sound.accuracy_simulated > 0.9 and abs(sound.accuracy_simulated - sound.accuracy_onnx) <= 0.005
    assert set(sound.site_sqnr_db) == set(mixed.grids) and min(sound.site_sqnr_db.values()) > 25
    assert {row.metric: row.evidence for row in sound.budget} == {
        "bops": "measured",
        "weight_bytes": "measured",
        "peak_activation_bytes": "modelled",
    }
    assert all(row.met for row in sound.budget)
    assert sound.latency["compressed"].runs == sound.latency["float"].runs >= 1
    assert sound.ratio is not None and sound.ratio > 0
    assert sound.to_json()["state"] == "verified"


def test_verify_when_device_is_this_host_then_its_latency_is_measured_and_another_ones_modelled(
    sound: VerificationReport, lab: Lab, mixed: CompressedNetwork
) -> None:
    assert sound.evidence["latency_ms"] == "measured"
    assert sound.costs["latency_ms"] == sound.latency["compressed"].min_ms
    other = replace(lab.subject(mixed), device=host_device("esp32s3"))
    report = verify(other, lab.files(mixed))
    assert report.evidence["latency_ms"] == "modelled"
    assert report.costs["latency_ms"] == count(lab.graph, mixed.assignment, other.device).latency_ms
    assert report.latency["compressed"].min_ms > 0


def test_verify_when_the_room_is_the_devices_then_its_budget_row_says_so_and_table_times_are_interpolated(
    lab: Lab, mixed: CompressedNetwork
) -> None:
    room = 1 << 20
    table = LatencyTable({"conv.int8.window.odd": {"calls": 1e-3}})
    device = replace(host_device("esp32s3"), activation_pool=MemoryPool(room, 10.0), table=table)
    subject = replace(lab.subject(mixed), device=device, budget=Budget({"peak_activation_bytes": room, "bops": 1e12}))
    report = verify(subject, lab.files(mixed))
    assert {row.metric: row.origin for row in report.budget} == {"peak_activation_bytes": "device", "bops": "request"}
    assert report.evidence["latency_ms"] == report.evidence["energy_mj"] == "interpolated"
    assert report.evidence["peak_activation_bytes"] == "modelled"


def edited(files: Files, name: str, change: Callable[[Any], Any]) -> Files:
    """The files with one initializer of the ONNX file replaced."""
    proto = onnx.load_from_string(files.onnx)
    found = next(item for item in proto.graph.initializer if item.name == name)
    found.CopyFrom(numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(found))), name))
    return replace(files, onnx=proto.SerializeToString())


def _layer_scale(files: Files) -> Files:
    return edited(files, "block1_conv1.w.scale", lambda scale: scale * np.float32(1.3))


def _one_channel_scale(files: Files) -> Files:
    def change(scale: Any) -> Any:
        scale = scale.copy()
        scale[0] *= np.float32(1.3)
        return scale

    return edited(files, "block2_conv2.w.scale", change)


def _zero_point(files: Files) -> Files:
    return edited(files, "block1_conv2.zero", lambda zero: (zero + 9).astype(zero.dtype))


def _activation_scale(files: Files) -> Files:
    return edited(files, "mean.scale", lambda scale: (scale * np.float32(1.3)).astype(np.float32))


def _bias(files: Files) -> Files:
    return edited(files, "fc.b", lambda codes: np.roll(codes, 1))


def _flipped_bit(files: Files) -> Files:
    def change(packed: Any) -> Any:
        packed = packed.copy()
        packed.reshape(-1)[5] ^= 1
        return packed

    return edited(files, "block1_conv1.w", change)


def _missing_clip(files: Files) -> Files:
    """Leave a 4-bit activation's clip out: codes above its grid pass."""
    proto = onnx.load_from_string(files.onnx)
    clip = next(node for node in proto.graph.node if node.op_type == "Clip")
    for node in proto.graph.node:
        node.input[:] = [clip.input[0] if name == clip.output[0] else name for name in node.input]
    proto.graph.node.remove(clip)
    return replace(files, onnx=proto.SerializeToString())


def _swapped_channels(files: Files) -> Files:
    def change(codes: Any) -> Any:
        assert codes.dtype in (np.int8, np.uint8) and codes.ndim == 4, "a layer of plain 8-bit codes"
        return codes[[1, 0, *range(2, len(codes))]]

    return edited(files, "stem.w", change)


def _truncated_onnx(files: Files) -> Files:
    return replace(files, onnx=files.onnx[: len(files.onnx) // 2])


def _empty_onnx(files: Files) -> Files:
    return replace(files, onnx=b"")


def _float_instead(files: Files) -> Files:
    return replace(files, onnx=files.float_onnx)


def _truncated_checkpoint(files: Files) -> Files:
    return replace(files, checkpoint=files.checkpoint[:-100])


def _checkpoint_scale(files: Files) -> Files:
    tensors, graph, manifest = read_archive(files.checkpoint)
    tensors["fc.weight.scale"] = tensors["fc.weight.scale"] * np.float32(1.3)
    return replace(files, checkpoint=write_archive(tensors, graph, manifest))


def _checkpoint_grid(files: Files) -> Files:
    tensors, graph, manifest = read_archive(files.checkpoint)
    graph["grids"]["mean"]["scale"] *= 1.3
    return replace(files, checkpoint=write_archive(tensors, graph, manifest))


def _pruned(files: Files, **changed: Any) -> Files:
    assert files.pruned is not None
    return replace(files, pruned=replace(files.pruned, **changed))


def _truncated_pruned_onnx(files: Files) -> Files:
    assert files.pruned is not None
    return _pruned(files, onnx=files.pruned.onnx[:-100])


def _other_pruned_onnx(files: Files) -> Files:
    """The biases of one layer are off by a little."""
    assert files.pruned is not None
    proto = onnx.load_from_string(files.pruned.onnx)
    held = next(item for item in proto.graph.initializer if item.name == "fc.bias")
    held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held) + np.float32(0.02), "fc.bias"))
    return _pruned(files, onnx=proto.SerializeToString())


def _truncated_pt2(files: Files) -> Files:
    assert files.pruned is not None and files.pruned.pt2 is not None
    return _pruned(files, pt2=files.pruned.pt2[:-100])


def _other_pt2(files: Files) -> Files:
    """The biases of one layer are off by a little, and the archive is sound."""
    assert files.pruned is not None and files.pruned.pt2 is not None
    module = read_network(files.pruned.pt2, "pt2")
    module.get_submodule("fc").bias.data += 0.02  # type: ignore[union-attr, operator]
    return _pruned(files, pt2=write_pt2(module))


def _encodings(files: Files, change: Callable[[dict[str, Any]], None]) -> Files:
    assert files.pruned is not None
    document = json.loads(files.pruned.encodings)
    change(document)
    return _pruned(files, encodings=json.dumps(document).encode())


def _renamed_encoding(files: Files) -> Files:
    return _encodings(files, lambda held: held["activation_encodings"][3].update(name="nowhere"))


def _scaled_encoding(files: Files) -> Files:
    return _encodings(files, lambda held: held["param_encodings"][2].update(scale=[0.5]))


def _shifted_encoding(files: Files) -> Files:
    return _encodings(files, lambda held: held["activation_encodings"][0].update(offset=[-3]))


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (_layer_scale, "tensors"),
        (_one_channel_scale, "tensors"),
        (_zero_point, "tensors"),
        (_activation_scale, "tensors"),
        (_bias, "tensors"),
        (_flipped_bit, "tensors"),
        (_missing_clip, "tensors"),
        (_swapped_channels, "tensors"),
        (_float_instead, "tensors"),
        (_truncated_onnx, "onnx-outputs-error"),
        (_empty_onnx, "onnx-outputs-error"),
        (_truncated_checkpoint, "checkpoint-error"),
        (_checkpoint_scale, "checkpoint"),
        (_checkpoint_grid, "checkpoint"),
        (_truncated_pruned_onnx, "pruned-onnx-error"),
        (_other_pruned_onnx, "pruned-onnx"),
        (_truncated_pt2, "pruned-pt2-error"),
        (_other_pt2, "pruned-pt2"),
        (_renamed_encoding, "encodings"),
        (_scaled_encoding, "encodings"),
        (_shifted_encoding, "encodings"),
    ],
)
def test_verify_when_a_file_is_broken_then_failed_by_name(
    lab: Lab, mixed: CompressedNetwork, broken: Break, code: str
) -> None:
    report = verify(lab.subject(mixed), broken(lab.files(mixed)))
    assert report.state.value == "failed"
    assert code in {failure["code"] for failure in report.failures}
    assert report.to_json()["failures"]


def test_verify_when_the_onnx_weights_are_not_packed_then_failed_by_size_alone(
    lab: Lab, mixed: CompressedNetwork
) -> None:
    wide = {name: replace(layer, bits=8) for name, layer in mixed.layers.items()}
    files = replace(lab.files(mixed), onnx=written(replace(mixed, layers=wide)))
    report = verify(lab.subject(mixed), files)
    assert {failure["code"] for failure in report.failures} == {"size"}
    assert any("bits take" in failure["detail"] for failure in report.failures)


def test_verify_when_the_checkpoint_holds_more_bits_than_reported_then_the_recount_fails(
    lab: Lab, mixed: CompressedNetwork
) -> None:
    wider = lab.compress(0.875, [8], [8])
    report = verify(lab.subject(mixed), replace(lab.files(mixed), checkpoint=write_checkpoint(wider, {})))
    details = [failure["detail"] for failure in report.failures if failure["code"] == "recount"]
    assert any(detail.startswith("weight_bytes") for detail in details)
    assert any(detail.startswith("bops") for detail in details)


@pytest.mark.parametrize(
    ("keep", "weights", "acts"),
    [
        (1.0, [8], [8]),
        (0.875, [8, 5, 6, 4, 3, 7, 8, 2], [8, 8, 4]),
        (0.5, [4], [4]),
        (1.0, [32], [32]),
        (1.0, [3], [32]),
    ],
)
def test_recount_when_counted_from_tensors_then_equals_the_domain(
    lab: Lab, keep: float, weights: list[int], acts: list[int]
) -> None:
    net, device = lab.compress(keep, weights, acts), host_device()
    found = recount(write_checkpoint(net, {}), device)
    costs = count(lab.graph, net.assignment, device)
    assert found.totals() == {"macs": costs.macs, "bops": costs.bops, "weight_bytes": costs.weight_bytes}
    assert [row.name for row in found.layers] == [layer.name for layer in lab.graph.layers]


def test_recount_when_the_device_stores_wider_then_bytes_follow_the_container(lab: Lab) -> None:
    net = lab.compress(1.0, [3], [8])
    wide = replace(host_device(), storage_bits={3: 4})
    assert (
        recount(write_checkpoint(net, {}), wide).totals()["weight_bytes"]
        == count(lab.graph, net.assignment, wide).weight_bytes
    )


def test_verify_when_a_layer_has_one_scale_for_all_channels_then_verified_and_counted_so(lab: Lab) -> None:
    net = lab.compress(1.0, [8], [8])
    layer = net.layers["fc"]
    assert layer.weight_int is not None and layer.weight_scale is not None
    one = replace(layer, weight_scale=layer.weight_scale[:1])
    module = copy.deepcopy(net.module)
    module.get_submodule("fc").weight.data = torch.from_numpy(dequantized(one))
    step = np.float32(net.grids["mean"].scale) * one.weight_scale
    one = replace(one, bias=(np.rint(layer.bias / step) * step).astype(np.float32))
    module.get_submodule("fc").bias.data = torch.from_numpy(one.bias)
    per_tensor = replace(net, module=module, layers={**net.layers, "fc": one})
    device = replace(host_device(), per_channel_weights=("conv", "depthwise"))
    report = verify(replace(lab.subject(per_tensor), device=device), lab.files(per_tensor))
    assert report.failures == []
    assert report.costs["weight_bytes"] == count(lab.graph, net.assignment, host_device()).weight_bytes - 9 * 4
