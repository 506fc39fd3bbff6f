"""Channel gates with batch-shaping (Bejnordi et al. 2020) beside static pruning to the same MACs.

All start from the network of 8 bits and train for the same steps. Static: every inner group narrowed evenly by the
search's compressor. Control: nothing gated, nothing pruned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import torch

from app.domain import methods
from benchmarks.budgets import same_everywhere
from benchmarks.cells import Measure
from benchmarks.claims import Claim
from benchmarks.papers.kind import Found, Kind, Pair, Rows, pairs
from benchmarks.papers.subjects import error, prepared, trained, training_rows
from tests.worker.export.written import SATURATING, written
from worker.export.onnx_skip import write_skipping
from worker.graph.write_onnx import write_float
from worker.hardware.measure import measure as timed
from worker.methods.gated_costs import GatedCosts, spread_of
from worker.methods.gating import gateable
from worker.methods.protocol import Subject
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import Evaluator

CODE = "gating 3"
ABOUT = """
ResNet-8 on CIFAR-10 at 8 bits, gates at its three inner groups, steered to 59 % of the MACs in the mean (the paper
gates ResNets of 20 layers and more, for hundreds of epochs; it has no figures for this network); all train for five
epochs of 15,000 pictures. Static: the same groups narrowed evenly by the search's compressor; rate, labels and shift
are those that validation pictures chose for it. Control: nothing gated or pruned. Gated: the product's defaults, chosen
on validation pictures; training begins at a pruned network too, narrowed where its answers bear it best. Fixed: that
network, its gates kept from learning: nearly all that gates have over the static network here is narrowing well, next
to nothing is looking at the input. Unshaped: the gated one without the batch-shaping loss. MACs of gated networks are
those over the test pictures, the gates' own among them. Times, one picture: `masked` is model.onnx, which computes
every filter and puts zeros where one is off, `skipping` is gated.onnx, which does not compute them; taken in the same
rounds beside other work on the machine, so that they compare with each other only.
"""
NAME, BITS = "resnet8_cifar10", 8
SHARE, STATIC = 0.588, 0.57
TIMES = ("masked", "skipping", "ungated", "float")
HOW = methods.Training(epochs=5, rows=15_000, batch=64, rate=1e-3, labels=0.3, shift=1, mirror=True)
GATES = methods.ChannelGating(HOW, macs=SHARE)
SEEDS = (0, 1, 2)
STILL = 1e-12
"""A rate at which no gate gets anywhere."""


def parts() -> dict[str, Measure]:
    """Return one part per network and, of those that are held against each other, per seed."""
    found: dict[str, Measure] = {}
    for seed in SEEDS:
        found[f"gated-{seed}"] = partial(gated, replace(GATES, training=replace(HOW, seed=seed)))
        found[f"static-{seed}"] = partial(plain, STATIC, seed)
    found["unshaped"] = partial(gated, replace(GATES, gamma=0.0))
    found["fixed"] = partial(gated, replace(GATES, gamma=0.0, gate_rate=STILL))
    return {**found, "control": partial(plain, 1.0)}


def gated(method: methods.ChannelGating) -> dict[str, Any]:
    """Return a gated network's test error in per cent, its MACs, its gates' spread over pictures, and latencies."""
    owner, subject = _prepared()
    network, pictures = trained(subject, method, NAME), owner.pictures("holdout")
    costs = GatedCosts.of(owner.graph, network)
    whole, found = GatedCosts.of(owner.graph, subject.network).dense, spread_of(network, costs, pictures)
    return {
        "error": error(owner, network),
        "validation_error": error(owner, network, "full"),
        "macs": {"mean": found.mean / whole, "p95": found.p95 / whole, "largest": found.largest / whole},
        **_spread(owner, network),
        "latency_ms": _latencies(owner, network),
    }


def _spread(owner: Evaluator, network: CompressedNetwork) -> dict[str, Any]:
    """Return how many gates there are, and the mean over them of their variance over test pictures."""
    batches = [network.masks(*inputs) for inputs in owner.pictures("holdout").batches(512)]
    variances = []
    for site, gate in network.gates.items():
        on = torch.cat([batch[site] for batch in batches]).double()
        first = [gate.owner.index(index) for index in range(len(gate.excite_bias))]
        variances.append(on[:, first].var(0))
    count = sum(len(item) for item in variances)
    return {"gates": count, "variance": float(torch.cat(variances).mean()) if count else 0.0}


def _latencies(owner: Evaluator, network: CompressedNetwork) -> dict[str, float]:
    row = [item.numpy() for item in owner.pictures("holdout").head(1).inputs]
    files = {"masked": written(network), "ungated": written(replace(network, gates={}))}
    files |= {"skipping": write_skipping(network, SATURATING)} if network.gates else {}
    files["float"] = write_float(owner.original)
    return {name: found.min_ms for name, found in timed(files, row).items()}


def plain(keep: float, seed: int = 0) -> dict[str, Any]:
    """Return the test error of a network of some inner channels, trained straight through, and its share of MACs."""
    owner, subject = _prepared()
    whole = GatedCosts.of(owner.graph, subject.network).dense
    asked, channels = same_everywhere(owner.graph, BITS, BITS), owner.graph.group
    inner = {group: round(keep * channels[group].channels) for group in gateable(owner.graph)}
    network = owner.compress(replace(asked, keep={**asked.keep, **inner}))
    method = methods.StraightThrough(replace(HOW, seed=seed))
    made = trained(replace(subject, network=network), method, f"{NAME} {keep}")
    share = GatedCosts.of(owner.graph, made).dense / whole
    return {
        "error": error(owner, made),
        "validation_error": error(owner, made, "full"),
        "macs": {"mean": share, "p95": share, "largest": share},
    }


def _prepared() -> tuple[Evaluator, Subject]:
    torch.set_num_threads(1)
    return prepared(training_rows(NAME, HOW.rows), BITS)


def rows(found: Found) -> Rows:
    """Return test errors, MACs and spreads."""
    times_ = ", ".join(TIMES)
    table = [["network", "test error", "MACs, mean", "95th percentile", "gates", "variance", f"{times_} ms"]]
    for name, item in found.items():
        macs = [f"{100 * item['macs'][key]:.1f} %" for key in ("mean", "p95")]
        rest = ["-", "-", "-"]
        if "gates" in item:
            times = ", ".join(f"{item['latency_ms'][key]:.3f}" if key in item["latency_ms"] else "-" for key in TIMES)
            rest = [str(item["gates"]), f"{item['variance']:.3f}", times]
        table.append([name, f"{item['error']:.2f} %", *macs, *rest])
    return table


def claims(found: Found) -> list[Claim]:
    """Return what is claimed, measured or not: of the means over the seeds that both sides were measured with."""
    accurate = "Gating: at most the static network's error at no more MACs in the mean"
    shaped = "Gating: gates differ by input more with batch-shaping than without"
    both = pairs(found, [(f"gated-{seed}", f"static-{seed}") for seed in SEEDS])
    own, bare = found.get(f"gated-{HOW.seed}"), found.get("unshaped")
    return [_accurate(accurate, both), _shaped(shaped, own, bare)]


def _accurate(text: str, both: Sequence[Pair]) -> Claim:
    if not both:
        return Claim(text, None, "-")
    each = [static["error"] - own["error"] for own, static in both]
    ahead, more = fmean(each), fmean(own["macs"]["mean"] - static["macs"]["mean"] for own, static in both)
    by_seed = ", ".join(f"{item:+.2f}" for item in each)
    return Claim(text, ahead >= 0 and more <= 0.005, f"{ahead:+.2f} points ({by_seed}), {100 * more:+.1f} % MACs")


def _shaped(text: str, own: Mapping[str, Any] | None, bare: Mapping[str, Any] | None) -> Claim:
    if own is None or bare is None:
        return Claim(text, None, "-")
    return Claim(text, own["variance"] > bare["variance"], f"{own['variance']:.3f} against {bare['variance']:.3f}")


KIND = Kind("gating", "Channel gating with batch-shaping (Bejnordi et al. 2020)", ABOUT, CODE, parts, rows, claims)
