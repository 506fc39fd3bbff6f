"""Equalisation, absorption and bias correction of 8 bits with one scale per tensor (Nagel et al. 2019, section 5)."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from app.domain.device import DeviceProfile
from benchmarks.budgets import DEVICE, same_everywhere
from benchmarks.cells import SHARED, Measure
from benchmarks.claims import Claim
from benchmarks.networks import arrays, network, pictures
from benchmarks.papers.kind import Found, Kind, Rows
from worker.data import Role, RoleData
from worker.graph.ops.table import module_of
from worker.graph.slicing import Slicer
from worker.methods.bias import BiasCorrector, input_moments
from worker.quant.absorb import absorbed
from worker.quant.equalise import equalised, pairs
from worker.quant.network import CompressedNetwork
from worker.quant.rebias import matched, rebiased
from worker.search.evaluate import Evaluator, EvaluatorOptions, Opened, evaluator_of, open_evaluator, open_network
from worker.search.metrics import Outputs
from worker.search.metrics import measure as measured

CODE = "bias 1"
ABOUT = """
Channels are scaled by factors from 1/32 to 32, log-uniform, wherever the network stays the same function for it: 8 bits
with one scale per tensor collapse. Each step is measured on what the steps before it left, on test pictures; only
rounding and the step named are applied, compared with the float network as it was. "analytic" takes means
from BatchNorms, "sequential" from 512 calibration rows. The row "search" is what a search hands over at these bits: it
equalises and absorbs by itself where evaluation pictures say better. Below, 4-bit weights with a scale per channel.

EfficientNet-Lite0 has no labelled pictures here: it is told by agreement with the float network on 96 upscaled CIFAR-10
pictures. A ReLU6, which scales do not pass, lies between all but two pairs of its layers.
The paper's MobileNetV2 on ImageNet (71.7 % float) collapses to 0.1 % and is brought back to within a point.
"""
LABELLED = ("resnet8_cifar10", "vgg7_cifar10")
PARTS = (*LABELLED, "efficientnet_lite0")
OCTAVES = 5.0
POINT = 0.01
PER_TENSOR = replace(DEVICE, per_channel_weights=())
ROWS = 512
SIZE, LARGE = 224, (64, 64, 96)
CPU = torch.device("cpu")


def parts() -> dict[str, Measure]:
    """Return one part per network."""
    return {name: functools.partial(measure, name) for name in PARTS}


def measure(name: str) -> dict[str, Any]:
    """Return figures by step: of 8 bits with one scale per tensor, and of 4-bit weights with a scale per channel."""
    torch.set_num_threads(1)
    opened, data, options = _case(name)
    plain = _owner(opened, opened.folded, data, options, PER_TENSOR)
    spoilt = rescaled(opened.folded, OCTAVES)
    level = equalised(spoilt) or spoilt
    lower = absorbed(level) or level
    networks = {"as it is": opened.folded, "rescaled": spoilt, "equalised": level, "absorbed": lower}
    steps = {"float": _figures(plain, plain.float_outputs("holdout"))}
    for step, folded in networks.items():
        owner = _owner(opened, folded, data, options, PER_TENSOR)
        owner.original = opened.folded
        steps |= _corrected(owner, step, 8)
    search = open_evaluator(replace(opened, folded=spoilt, slicer=_slicer(opened, spoilt)), data, PER_TENSOR, options)
    steps["search"] = _figures(search, search.outputs(search.compress(_bits(search, 8)), "holdout"))
    fine = _corrected(_owner(opened, opened.folded, data, options, DEVICE), "as it is", 4, plainly=True)
    return {"name": name, "steps": steps, "four_bits": fine, "search": search.conditioned}


def _case(name: str) -> tuple[Opened, Mapping[Role, RoleData], EvaluatorOptions]:
    if name in LABELLED:
        return network(name), pictures(name), EvaluatorOptions(calibration=ROWS)
    opened = open_network((SHARED / "models" / f"{name}_imagenet.onnx").read_bytes())
    options = EvaluatorOptions(calibration=LARGE[0], screen=LARGE[1], full=LARGE[1], thorough=LARGE[0], fast=LARGE[0])
    return opened, _upscaled(), options


def _upscaled() -> dict[Role, RoleData]:
    """Return CIFAR-10 test pictures, upscaled, as EfficientNet-Lite0 takes them."""
    x = torch.from_numpy(arrays("cifar10")["x_test"][: sum(LARGE)]).permute(0, 3, 1, 2).float()
    x = (F.interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False).round() - 127) / 128
    parts = (RoleData((part.contiguous(memory_format=torch.channels_last),)) for part in x.split(LARGE))
    roles: tuple[Role, ...] = ("calibration", "evaluation", "holdout")
    return dict(zip(roles, parts, strict=True))


def rescaled(folded: fx.GraphModule, octaves: float) -> fx.GraphModule:
    """Return the same function with channels between layers scaled by 2^-octaves to 2^octaves."""
    found, generator = copy.deepcopy(folded), torch.Generator().manual_seed(0)
    for node, follower in pairs(folded):
        one, other = module_of(found, node), module_of(found, follower)
        factor = torch.exp2(octaves * (2 * torch.rand(len(one.weight), generator=generator) - 1))
        rows = factor.reshape(-1, *[1] * (one.weight.dim() - 1))
        one.weight.data *= rows
        for key in ("bias", "bn_beta", "bn_gamma"):
            if getattr(one, key, None) is not None:
                getattr(one, key).data *= factor
        depthwise = getattr(other, "groups", 1) > 1
        other.weight.data /= rows if depthwise else factor.reshape(1, -1, *[1] * (other.weight.dim() - 2))
    return found


def _slicer(opened: Opened, folded: fx.GraphModule) -> Slicer:
    return Slicer(folded, opened.slicer.plan)


def _owner(
    opened: Opened,
    folded: fx.GraphModule,
    data: Mapping[Role, RoleData],
    options: EvaluatorOptions,
    device: DeviceProfile,
) -> Evaluator:
    changed = replace(opened, folded=folded, slicer=_slicer(opened, folded))
    return evaluator_of(changed, data, device, options, CPU)


def _bits(owner: Evaluator, weights: int) -> Any:
    return same_everywhere(owner.graph, weights, 8)


def _corrected(owner: Evaluator, step: str, bits: int, plainly: bool = False) -> dict[str, Any]:
    """Return figures of a network that is rounded alone, and with each correction on it."""
    net = owner.compress(_bits(owner, bits), "none")
    corrector, rows = BiasCorrector(owner.folded, net), owner.rows.head(ROWS)
    moments = input_moments(owner.folded, rows)
    analytic = functools.partial(corrector.analytic, moments)
    made = {
        "": net,
        ", analytic": rebiased(net, owner.graph, analytic().biases),
        ", sequential": matched(net, owner.graph, corrector.wanted(rows.inputs), rows.inputs),
    }
    if plainly:
        made[", analytic, padding not counted"] = rebiased(net, owner.graph, analytic(padding_aware=False).biases)
        made[", local"] = rebiased(net, owner.graph, corrector.local([rows.inputs]).biases)
    return {step + way: _told(owner, item) for way, item in made.items()}


def _told(owner: Evaluator, net: CompressedNetwork) -> dict[str, float]:
    return _figures(owner, owner.outputs(net, "holdout"))


def _figures(owner: Evaluator, outputs: Outputs) -> dict[str, float]:
    """Return accuracy where there are labels, agreement with the float network, and the outputs' SQNR in dB."""
    wanted = owner.float_outputs("holdout")
    found = measured(outputs, wanted, owner.graph.outputs, owner.pictures("holdout").labels)
    power = float(wanted[0].double().square().mean())
    ratio = power / found["mse"] if found["mse"] else math.inf
    figures = {key: found[key] for key in ("accuracy", "agreement", "kl") if key in found}
    return figures | ({} if math.isinf(ratio) else {"sqnr_db": 10 * math.log10(ratio)})


def rows(found: Found) -> Rows:
    """Return accuracy or, without labels, agreement, and the outputs' SQNR, step by step."""
    table = [["network", "weights", "step", "accuracy", "agreement", "SQNR"]]
    for name, item in found.items():
        for bits, key in ((8, "steps"), (4, "four_bits")):
            table += [[name, f"{bits} bits", *_row(step, figures)] for step, figures in item[key].items()]
    return table


def _row(step: str, figures: Mapping[str, float]) -> list[str]:
    shares = (f"{100 * figures[key]:.2f} %" if key in figures else "-" for key in ("accuracy", "agreement"))
    return [step, *shares, f"{figures['sqnr_db']:.1f} dB" if "sqnr_db" in figures else "-"]


def claims(found: Found) -> list[Claim]:
    """Return what is claimed, measured or not."""
    said = []
    for name in LABELLED:
        item = found.get(name)
        text = f"DFQ, {name}: rescaled by 2^-5 to 2^5, 8 bits per tensor collapse; within a point of float "
        for way in ("absorbed, analytic", "absorbed, sequential", "search"):
            ending = "in a search" if way == "search" else f"equalised and {way}"
            if item is None:
                said.append(Claim(text + ending, None, "-"))
                continue
            goal, spoilt, back = (100 * item["steps"][step]["accuracy"] for step in ("float", "rescaled", way))
            holds = back >= goal - 100 * POINT and spoilt < goal / 2
            said.append(Claim(text + ending, holds, f"{goal:.2f} %, {spoilt:.2f} %, {back:.2f} %"))
    return said


KIND = Kind("bias", "Data-free quantization (Nagel et al. 2019)", ABOUT, CODE, parts, rows, claims)
