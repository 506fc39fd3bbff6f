"""Joint pruning and quantization by gradients (Wang et al. 2020) beside doing the one after the other.

Everything of one network and budget trains for the same steps on the same pictures, and keeps the same hard limit on
the BOPs. What is run is in `benchmarks.papers.joint_runs`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from statistics import mean, pstdev
from typing import Any

import torch

from app.domain import methods
from app.domain.space import Assignment
from benchmarks.cells import Measure, cell
from benchmarks.charts import Axes, Line, chart
from benchmarks.claims import Claim
from benchmarks.papers.further import further
from benchmarks.papers.joint_runs import Setup, answer, halfway, setup, shape, two_stage
from benchmarks.papers.kind import Found, Kind, Rows
from benchmarks.papers.subjects import error, trained
from worker.methods.protocol import Subject
from worker.quant.network import CompressedNetwork

NAME, CODE = "djpq", "djpq 1"
ABOUT = """
Channels and bits learned together under a hard limit on the BOPs. LeNet-5 on MNIST under 0.36 % of its float BOPs: the
paper has no figures for it, a neighbour (Bayesian Bits, van Baalen et al. 2020) has 99.30 % at 0.36 % after 100 epochs
of all pictures; here three of 30,000. resnet8 and vgg7 (16 channels and up) on CIFAR-10 under shares of the BOPs with 8
bits everywhere, four epochs of 6,000 pictures, half distillation, half labels. (The paper: VGG7, 128 channels and up,
loses 1.5 points at 1/210 of its float BOPs.)

"joint" starts from the answer of a search of channels and bits. "gates" is joint, its widths chosen by gates that
switch bits on and off, from 8 bits everywhere on the channels of that answer. "two-stage" prunes first: at 8 bits, half
of the way to the limit in its logarithm, by a search of channels alone, then two epochs of training; then a search of
bits alone on the trained network, and the other two epochs; all training of it is straight-through. Other ways to
divide the budget between its stages were not run. Where "joint" has the MACs and bits of "search" it kept the channels
and bits it started from: what it is ahead by is then the search's choice of both at once. (On LeNet-5 "joint" and
"gates" came to one network: both went on from the search's answer as it was, what they had learned had more loss.)
Controls: the search's answer as it is, that answer trained straight through for as many steps, and the float network
trained further on labels for as many, at a tenth of the rate: at the others' it loses what it knew (55.89 and 33.57 %).
"""
SEARCH, PRUNED, STRAIGHT, JOINT, STAGED = "search", "pruned", "straight", "joint", "two-stage"
FLOAT, GATES = "further", "gates"
NETWORKS = ("resnet8_cifar10", "vgg7_cifar10")
SHARES, SEEDS = (32, 8), (0, 1, 2)
LENET, LENET_SHARE = "lenet", 0.0036
ACCEPTED, AIM, MOST = 99.0, 99.3, 0.006
HOW = methods.Training(epochs=4, rows=6_000, batch=64, rate=3e-3, labels=0.5, shift=1, mirror=True)
SLOW = replace(HOW, rate=3e-4)
LENET_HOW = methods.Training(epochs=3, rows=30_000, batch=64, rate=2e-3, labels=0.5, shift=2)
LENETS: Mapping[str, methods.Method] = {
    LENET: methods.JointPruning(LENET_HOW),
    f"{LENET}-{STRAIGHT}": methods.StraightThrough(LENET_HOW),
    f"{LENET}-{GATES}": methods.JointPruning(LENET_HOW, joint=0.34, widths="gates", structure_rate=0.03),
}


def parts() -> dict[str, Measure]:
    """Return LeNet-5, then for each network the search's answers, the runs of each seed, and the controls."""
    found: dict[str, Measure] = {f"{LENET}-{SEARCH}": lenet_search}
    found |= {part: partial(lenet_by, method) for part, method in LENETS.items()}
    for name in NETWORKS:
        for share in SHARES:
            found[f"{name}-{share}-{SEARCH}"] = partial(searched, name, share)
            found[f"{name}-{share}-{PRUNED}"] = partial(pruned, name, share)
        for seed in SEEDS:
            for share in SHARES:
                found[f"{name}-{share}-{seed}-{JOINT}"] = partial(joint, name, share, seed)
                found[f"{name}-{share}-{seed}-{STAGED}"] = partial(staged, name, share, seed)
        found |= {f"{name}-{share}-{STRAIGHT}": partial(straight, name, share) for share in SHARES}
        found[f"{name}-{FLOAT}"] = partial(floating, name)
    return found


def lenet_search() -> dict[str, Any]:
    """Return the errors of a search's answer for LeNet-5 without training, and its assignment."""
    made, started = setup(LENET, LENET_SHARE, of=32), time.perf_counter()
    found = answer(made)
    return {**_told(made, made.owner.compress(found), started), "assignment": found.to_json()}


def lenet_by(method: methods.Method) -> dict[str, Any]:
    """Return LeNet-5's errors in per cent behind a method, and its BOPs as a share of those with 32 bits."""
    made, started = setup(LENET, LENET_SHARE, of=32), time.perf_counter()
    start = made.subject(made.owner.compress(_found(f"{LENET}-{SEARCH}", lenet_search)))
    network = trained(start, method, f"{LENET} {LENET_SHARE}")
    share = LENET_SHARE * made.bops(network) / made.limit
    return {**_told(made, network, started), "share": share}


def searched(name: str, share: int) -> dict[str, Any]:
    """Return the errors of a search's answer without training, and its assignment."""
    made, started = setup(name, 1 / share), time.perf_counter()
    found = answer(made)
    return {**_told(made, made.owner.compress(found), started), "assignment": found.to_json()}


def pruned(name: str, share: int) -> dict[str, Any]:
    """Return the validation error and the assignment that the two stages begin with."""
    made = setup(name, 1 / share)
    found = halfway(made)
    return {"validation_error": error(made.owner, made.owner.compress(found), "full"), "assignment": found.to_json()}


def joint(name: str, share: int, seed: int) -> dict[str, Any]:
    """Return the errors of channels and bits that were learned together from the search's answer."""
    return _by(name, share, methods.JointPruning(replace(HOW, seed=seed)))


def straight(name: str, share: int) -> dict[str, Any]:
    """Return the errors of the search's answer trained straight through."""
    return _by(name, share, methods.StraightThrough(HOW))


def _by(name: str, share: int, method: methods.Method) -> dict[str, Any]:
    made, started = setup(name, 1 / share), time.perf_counter()
    network = trained(_start(made, name, share), method, f"{name} {share}")
    return _told(made, network, started)


def _start(made: Setup, name: str, share: int) -> Subject:
    """Return the search's answer, which is a part of its own."""
    found = _found(f"{name}-{share}-{SEARCH}", partial(searched, name, share))
    return made.subject(made.owner.compress(found))


def _found(part: str, measure: Measure) -> Assignment:
    """Return the assignment of another part."""
    return Assignment.from_json(cell(KIND.cell(part), measure, CODE)["assignment"])


def staged(name: str, share: int, seed: int) -> dict[str, Any]:
    """Return the errors of a network that was pruned first and quantized then."""
    made, started = setup(name, 1 / share), time.perf_counter()
    channels = _found(f"{name}-{share}-{PRUNED}", partial(pruned, name, share))
    return _told(made, two_stage(made, channels, replace(HOW, seed=seed), f"{name} {share}"), started)


def floating(name: str) -> dict[str, Any]:
    """Return the errors of the float network, as it is and trained on labels for as many steps."""
    torch.set_num_threads(1)
    made = setup(name, 1.0)
    return {"float": error(made.owner, None), **further(made.owner, SLOW)}


def _told(made: Setup, network: CompressedNetwork, started: float) -> dict[str, Any]:
    return {
        "error": error(made.owner, network),
        "validation_error": error(made.owner, network, "full"),
        "bops": made.bops(network),
        "limit": made.limit,
        "shape": shape(made, network),
        "seconds": time.perf_counter() - started,
    }


def _seeds(found: Found, name: str, share: int, way: str) -> list[Mapping[str, Any]]:
    parts = [found.get(f"{name}-{share}-{seed}-{way}") for seed in SEEDS]
    return [item for item in parts if item is not None]


def rows(found: Found) -> Rows:
    """Return test errors, and where the BOPs went."""
    table = [["network", "limit", "run", "test error", "seeds", "BOPs of the limit", "MACs left", "bits"]]
    limit = f"{100 * LENET_SHARE:.2f} % of float"
    for way in (SEARCH, STRAIGHT, JOINT, GATES):
        part = LENET if way == JOINT else f"{LENET}-{way}"
        table += [[LENET, limit, way, *_figures([found[part]])]] if part in found else []
    for name in NETWORKS:
        for share in SHARES:
            singles = {way: found.get(f"{name}-{share}-{way}") for way in (SEARCH, STRAIGHT)}
            runs = {way: [item] for way, item in singles.items() if item is not None}
            runs |= {way: items for way in (JOINT, STAGED) if (items := _seeds(found, name, share, way))}
            table += [[name, f"1/{share}", way, *_figures(items)] for way, items in runs.items()]
        if f"{name}-{FLOAT}" in found:
            item = found[f"{name}-{FLOAT}"]
            table.append([name, "none", "float, as it is", f"{item['float']:.2f} %", "1", "", "", ""])
            table.append([name, "none", "float, trained on", f"{item['trained']:.2f} %", "1", "", "", ""])
    return table


def _figures(items: list[Mapping[str, Any]]) -> list[str]:
    errors, spent = [item["error"] for item in items], [item["bops"] / item["limit"] for item in items]
    spread = f" ± {pstdev(errors):.2f}" if len(items) > 1 else ""
    macs, bits = (mean(item["shape"][key] for item in items) for key in ("macs", "bits"))
    count = str(len(items))
    return [f"{mean(errors):.2f} %{spread}", count, f"{100 * max(spent):.1f} %", f"{100 * macs:.0f} %", f"{bits:.2f}"]


def claims(found: Found) -> list[Claim]:
    """Return what is claimed, measured or not."""
    said = [_lenet_claim(found.get(LENET))]
    said += [_ahead(found, name, share) for name in NETWORKS for share in SHARES]
    said += [_beside(found, name, share) for name in NETWORKS for share in SHARES]
    runs = [item for item in found.values() if "limit" in item]
    met = all(item["bops"] <= item["limit"] for item in runs) if runs else None
    return [*said, Claim("DJPQ: every limit on the BOPs kept", met, f"{len(runs)} networks")]


def _lenet_claim(item: Mapping[str, Any] | None) -> Claim:
    text = f"DJPQ, LeNet-5: at least {ACCEPTED} % test accuracy at {100 * MOST} % of the float BOPs or less"
    if item is None:
        return Claim(text, None, "-")
    right, share = 100 - item["error"], item["share"]
    aim = "reached" if right >= AIM - 1e-9 else "not reached"
    holds = right >= ACCEPTED - 1e-9 and share <= MOST
    return Claim(text, holds, f"{right:.2f} % at {100 * share:.3f} %; {AIM} % at 0.36 % {aim}")


def _ahead(found: Found, name: str, share: int) -> Claim:
    """Claim the mean over seeds, told only where all were measured."""
    text = f"DJPQ, {name} at 1/{share}: joint ahead of two-stage in the mean over {len(SEEDS)} seeds"
    one, other = (_seeds(found, name, share, way) for way in (JOINT, STAGED))
    if len(one) < len(SEEDS) or len(other) < len(SEEDS):
        return Claim(text, None, "-")
    gains = [after["error"] - before["error"] for before, after in zip(one, other, strict=True)]
    each = ", ".join(f"{gain:+.2f}" for gain in gains)
    return Claim(text, mean(gains) > 0, f"{mean(gains):+.2f} points ({each})")


def _beside(found: Found, name: str, share: int) -> Claim:
    """Claim what training alone gives, of the one seed that the control has."""
    text = f"DJPQ, {name} at 1/{share}: joint no worse than training its start straight through (seed {HOW.seed})"
    one, other = found.get(f"{name}-{share}-{HOW.seed}-{JOINT}"), found.get(f"{name}-{share}-{STRAIGHT}")
    if one is None or other is None:
        return Claim(text, None, "-")
    gain = other["error"] - one["error"]
    return Claim(text, gain >= 0, f"{gain:+.2f} points")


def plots(found: Found) -> dict[str, str]:
    """Return a curve of test accuracy over BOPs for each network that was measured."""
    return {f"{name}: test accuracy by BOPs": svg for name in NETWORKS if (svg := _plot(found, name)) is not None}


def _plot(found: Found, name: str) -> str | None:
    lines = []
    for way in (JOINT, STAGED, STRAIGHT, SEARCH):
        points = []
        for share in SHARES:
            one = found.get(f"{name}-{share}-{way}")
            items = _seeds(found, name, share, way) if one is None else [one]
            if items:
                errors = [item["error"] for item in items]
                points.append((1 / share, 100 - mean(errors), pstdev(errors)))
        if points:
            lines.append(Line(way, points))
    if not lines:
        return None
    every = [y for line in lines for _, y, _ in line.points]
    ends = min(every) - 2, max(every) + 2
    ticks = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)
    return chart(Axes(name, "BOPs, share of 8 bits everywhere", "test accuracy, %", ticks, ends), lines)


KIND = Kind(NAME, "Joint pruning and quantization (Wang et al. 2020)", ABOUT, CODE, parts, rows, claims, plots)
