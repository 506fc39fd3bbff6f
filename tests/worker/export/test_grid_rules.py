"""Devices with rules for grids: what is made for them keeps the rules and is verified; what isn't, is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.domain.device import DeviceProfile
from worker.export.grid_rules import rule_violations
from worker.export.verify import verify
from worker.quant.compressor import Compressor
from worker.quant.network import CompressedNetwork

from .conftest import Lab, host_device

POWERS = replace(host_device("esp"), activation_scheme="symmetric", scale="power-of-two")
SYMMETRIC = replace(host_device("trt"), activation_scheme="symmetric")
TENSORS = replace(POWERS, per_channel_weights=())


def made_for(lab: Lab, device: DeviceProfile) -> CompressedNetwork:
    own = lab.evaluator.compressor
    compressor = Compressor(own.slicer, own.graph, own.reference, device, own.fast_pictures)
    return compressor.compress(lab.assignment(0.875, [8, 4, 6], [8]))


@pytest.mark.parametrize("device", [POWERS, SYMMETRIC, TENSORS], ids=["powers", "symmetric", "per-tensor"])
def test_compress_when_the_device_has_rules_then_they_are_kept_and_the_export_is_verified(
    lab: Lab, device: DeviceProfile
) -> None:
    net = made_for(lab, device)
    assert rule_violations(net, device) == []
    assert {grid.zero_point for grid in net.grids.values()} == {128}
    report = verify(replace(lab.subject(net), device=device), lab.files(net))
    assert report.failures == []
    assert report.agreement is not None and report.agreement.top1 >= 0.995


def test_compress_when_scales_are_powers_of_two_then_most_of_the_accuracy_stays(lab: Lab) -> None:
    pictures = lab.data["evaluation"]
    assert pictures.labels is not None
    found = {}
    for name, device in (("free", host_device()), ("powers", POWERS)):
        outputs = made_for(lab, device).forward(*pictures.inputs)
        found[name] = float((outputs.argmax(1) == pictures.labels).float().mean())
    assert found["powers"] > found["free"] - 0.03


def test_rule_violations_when_made_for_another_device_then_named_and_the_export_fails(lab: Lab) -> None:
    net = made_for(lab, host_device())
    told = rule_violations(net, POWERS)
    assert sum("symmetric activations" in text for text in told) >= 5
    assert sum("no powers of two" in text for text in told) > len(net.layers)
    report = verify(replace(lab.subject(net), device=POWERS), lab.files(net))
    assert {item["code"] for item in report.failures} == {"grid-rules"}


def test_rule_violations_when_the_device_has_none_then_none(lab: Lab) -> None:
    assert rule_violations(made_for(lab, POWERS), host_device()) == []
    assert np.isfinite(torch.stack([made_for(lab, POWERS).forward(*lab.data["evaluation"].head(5).inputs)])).all()
