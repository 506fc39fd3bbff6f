"""Why a network is not faster on a device: what every operation's time goes to, against the float and W8A8 networks,
and the single changes that would save most, each counted again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.domain.budget import counted_evidence
from app.domain.cost import Breakdown, breakdown, count
from app.domain.device import DeviceProfile, Evidence
from app.domain.graph import ModelGraph
from app.domain.roofline import PARTS, Parts
from app.domain.space import Assignment, SearchSpace, widest

LOOKED_AT = 24
"""How many of the slowest layers have their bits changed on trial."""
_CAUSES = {
    "compute": "arithmetic takes the time: fewer channels, or bits that the device computes faster, would help",
    "memory": "moving bytes takes the time: narrower weights and activations would help",
    "padding": "the device pads channels to its multiple: counts on the multiple would help",
    "boundary": "changes of precision between layers take the time: equal activation bits would help",
    "overhead": "fixed times per inference and operation dominate: the network is too small to gain from fewer bits",
    "fallback": "operations that the device lacks run on its host, and the way there and back takes the time",
}


@dataclass(frozen=True)
class Change:
    """One change and the milliseconds it saves. `kind` is keep, round, weight_bits, activation_bits, boundary or
    sparsity."""

    kind: str
    target: str
    before: int
    after: int
    saving_ms: float

    def to_json(self) -> dict[str, Any]:
        """Return the change as JSON, in words too."""
        return {
            "kind": self.kind,
            "target": self.target,
            "before": self.before,
            "after": self.after,
            "saving_ms": self.saving_ms,
            "text": _TEXTS[self.kind].format(**vars(self)),
        }


_TEXTS = {
    "keep": "keep {after} instead of {before} channels of {target}",
    "round": "round the {before} channels of {target} to {after}, on the device's multiple",
    "weight_bits": "store the weights of {target} in {after} instead of {before} bits",
    "activation_bits": "keep {target} in {after} instead of {before} bits",
    "sparsity": "keep {after} of every {before} weights of {target}, in the pattern the device computes faster",
    "boundary": "keep {target} in {after} instead of {before} bits, which moves a change of precision",
}


@dataclass(frozen=True)
class Why:
    """The answer. `references` are the float and W8A8 networks, unpruned; `changes` are the best, best first."""

    found: Breakdown
    references: Mapping[str, Breakdown]
    changes: tuple[Change, ...]
    evidence: Evidence

    @property
    def latency_ms(self) -> float:
        """Return the whole network's milliseconds."""
        return self.found.parts.total

    @property
    def verdict(self) -> str:
        """Say in a sentence how fast the network is beside the float one, and what its time goes to."""
        now, before = self.found.parts, self.references["float"].parts
        if now.total >= before.total:
            cause = max(PARTS, key=lambda part: float(getattr(now, part) - getattr(before, part)))
            largest = now.bound
            cause = largest if getattr(now, largest) >= now.total / 2 else cause
            said = f"not faster than the float network ({now.total:.3g} ms against {before.total:.3g} ms)"
        else:
            cause = now.bound
            said = f"{before.total / now.total:.2f} times as fast as the float network ({now.total:.3g} ms)"
        return f"{said}; {getattr(now, cause) / now.total:.0%} of its time is {cause}: {_CAUSES[cause]}"

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON, operations slowest first."""
        return {
            "latency_ms": self.latency_ms,
            "evidence": self.evidence,
            "bound": self.found.parts.bound,
            "verdict": self.verdict,
            "parts": self.found.parts.to_json(),
            "network": self.found.network.to_json(),
            "references": {
                name: {"latency_ms": item.parts.total, "parts": item.parts.to_json()}
                for name, item in self.references.items()
            },
            "operations": list(self._operations()),
            "changes": [change.to_json() for change in self.changes],
        }

    def _operations(self) -> Iterator[dict[str, Any]]:
        times = {name: _times(item) for name, item in self.references.items()}
        for op in sorted(self.found.ops, key=lambda item: -item.latency_ms):
            yield {
                "name": op.name,
                "kind": op.kind,
                "latency_ms": op.latency_ms,
                "share": op.latency_ms / self.latency_ms,
                "bound": op.parts.bound,
                "parts": op.parts.to_json(),
                "references": {name: held[op.name].total for name, held in times.items()},
            }


def explain(graph: ModelGraph, assignment: Assignment, device: DeviceProfile, space: SearchSpace, best: int = 3) -> Why:
    """Explain an assignment's latency, and name the `best` single changes within `space` that save most."""
    references = {name: breakdown(graph, widest(graph, bits), device) for name, bits in (("float", 32), ("w8a8", 8))}
    found = breakdown(graph, assignment, device)
    changes = _savings(graph, assignment, device, _variants(graph, assignment, (space, device), _slowest(found)))
    changes = sorted((*changes, *_sparse(graph, assignment, device)), key=lambda item: -item.saving_ms)
    return Why(found, references, tuple(changes[:best]), counted_evidence(device)["latency_ms"])


def _times(item: Breakdown) -> Mapping[str, Parts]:
    return {op.name: op.parts for op in item.ops}


def _slowest(found: Breakdown) -> Sequence[str]:
    ordered = sorted(found.layers, key=lambda item: -item.latency_ms)
    return [item.name for item in ordered[:LOOKED_AT]]


Variant = tuple[str, str, int, int, Assignment]


def _savings(
    graph: ModelGraph, assignment: Assignment, device: DeviceProfile, variants: Iterable[Variant]
) -> list[Change]:
    """Count every variant again; of several for one target the best stays. Best first, only those that save time."""
    before = count(graph, assignment, device).latency_ms
    found: dict[tuple[str, str], Change] = {}
    for kind, target, old, new, variant in variants:
        change = Change(kind, target, old, new, before - count(graph, variant, device).latency_ms)
        key = ("keep" if kind in ("keep", "round") else "bits", target)
        if change.saving_ms > 1e-9 * before and change.saving_ms > (found[key].saving_ms if key in found else 0.0):
            found[key] = change
    return sorted(found.values(), key=lambda item: -item.saving_ms)


def _sparse(graph: ModelGraph, assignment: Assignment, device: DeviceProfile) -> Iterator[Change]:
    """Yield what weights in the pattern that the device computes faster would save, where it has one.

    Counted for the roofline only: a latency table holds what dense files took.
    """
    if device.sparsity is None or device.table is not None:
        return
    kept, of = (int(number) for number in device.sparsity.pattern.split(":"))
    quick = tuple(
        replace(entry, gmacs=entry.gmacs * device.sparsity.speedup) if entry.weight_bits <= 8 else entry
        for entry in device.compute
    )
    before, after = (count(graph, assignment, item).latency_ms for item in (device, replace(device, compute=quick)))
    if after < before:
        yield Change("sparsity", "all layers", of, kept, before - after)


def _variants(
    graph: ModelGraph, assignment: Assignment, rules: tuple[SearchSpace, DeviceProfile], layers: Sequence[str]
) -> Iterator[Variant]:
    space, device = rules
    yield from _narrower(graph, assignment, space, device)
    for name in layers:
        now, read = assignment.weight_bits[name], assignment.activation_bits[graph.layer[name].input]
        for bits in space.weight_bits[name]:
            if bits != now and (bits, read) in space.pairs[name]:
                weights = {**assignment.weight_bits, name: bits}
                yield "weight_bits", name, now, bits, replace(assignment, weight_bits=weights)
    for site in dict.fromkeys(graph.layer[name].input for name in layers):
        yield from _other_bits(graph, assignment, space, site)


def _narrower(
    graph: ModelGraph, assignment: Assignment, space: SearchSpace, device: DeviceProfile
) -> Iterator[Variant]:
    """Yield every group cut to its next narrower choice."""
    for group in graph.groups:
        now = assignment.keep[group.id]
        below = [choice for choice in space.keep[group.id] if choice < now]
        if below:
            layers = (*group.producers, *group.consumers)
            uneven = any(now % device.channel_multiple_for(assignment.weight_bits[name]) for name in layers)
            kind = "round" if uneven else "keep"
            yield kind, group.id, now, below[0], replace(assignment, keep={**assignment.keep, group.id: below[0]})


def _other_bits(graph: ModelGraph, assignment: Assignment, space: SearchSpace, site: str) -> Iterator[Variant]:
    """Yield an activation at each other width that the layers reading it accept with their weights as they are."""
    now = assignment.activation_bits[site]
    readers = [layer.name for layer in graph.layers if layer.input == site]
    ends = {assignment.activation_bits[layer.output] for layer in graph.layers if layer.input == site and layer.output}
    ends |= {assignment.activation_bits[layer.input] for layer in graph.layers if layer.output == site}
    for bits in space.activation_bits[site]:
        if bits != now and all((assignment.weight_bits[name], bits) in space.pairs[name] for name in readers):
            kind = "boundary" if bits in ends and now not in ends else "activation_bits"
            acts = {**assignment.activation_bits, site: bits}
            yield kind, site, now, bits, replace(assignment, activation_bits=acts)
