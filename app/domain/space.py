"""The search space a device and a request leave open, and one point of it: the assignment."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from app.domain.device import DeviceProfile
from app.domain.graph import ChannelGroup, Layer, ModelGraph

FLOAT_BITS = 32
"""The bit-width that stands for "left float"."""
ROUNDING = 1e-9  # 0.7 * 10 is a little more than 7
KEEP_RATIOS = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)


@dataclass(frozen=True)
class Assignment:
    """Chosen kept channels per channel group, weight bits per layer and activation bits per activation.

    32 bits stand for "left float": the baseline is an assignment like any other.
    """

    keep: Mapping[str, int]
    weight_bits: Mapping[str, int]
    activation_bits: Mapping[str, int]

    def to_json(self) -> dict[str, dict[str, int]]:
        """Return a JSON-ready dict with sorted keys (equal assignments give equal text)."""
        return {
            "keep": dict(sorted(self.keep.items())),
            "weight_bits": dict(sorted(self.weight_bits.items())),
            "activation_bits": dict(sorted(self.activation_bits.items())),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Assignment:
        """Rebuild what `to_json` wrote."""
        return cls(dict(data["keep"]), dict(data["weight_bits"]), dict(data["activation_bits"]))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON text: the assignment's identity in caches."""
        return hashlib.sha256(json.dumps(self.to_json(), separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class BitRule:
    """Widths that a layer may have: of its weights, and of the activation it reads (None: all the device allows)."""

    weight: tuple[int, ...] | None = None
    activation: tuple[int, ...] | None = None

    def allows(self, weight: int, activation: int | None) -> bool:
        """Tell whether a pair obeys the rule (activation None: the network's input, which no rule is for)."""
        fits = self.activation is None or activation is None or activation in self.activation
        return fits and (self.weight is None or weight in self.weight)


@dataclass(frozen=True)
class SpaceSpec:
    """What a request says about the space: bounds and name patterns (fnmatch) to freeze.

    `min_keeps` and `max_keeps` are smallest and largest keep ratios by pattern of a group's or its layers' names; of
    several, the narrowest counts. `bits` are rules by pattern of layers' names; a layer obeys every one that fits it.
    `first_last`: the fewest bits of the first and last layers' weights and inputs. The network's input always keeps the
    device's width.
    """

    min_keep: float = 0.125
    prune: bool = True
    weight_bits: tuple[int, ...] | None = None
    activation_bits: tuple[int, ...] | None = None
    freeze: tuple[str, ...] = ()
    fixed_bits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    min_keeps: Mapping[str, float] = field(default_factory=dict)
    max_keeps: Mapping[str, float] = field(default_factory=dict)
    bits: Mapping[str, BitRule] = field(default_factory=dict)
    first_last: int | None = None


@dataclass(frozen=True)
class SearchSpace:
    """Legal choices: kept channels per group, (weight, input activation) bit pairs per layer, bits per activation.

    Choices are sorted from the largest (the least compression) down. A layer's pair is legal when
    (weight bits, bits of its input activation) is in `pairs[layer]`.
    """

    keep: Mapping[str, tuple[int, ...]]
    weight_bits: Mapping[str, tuple[int, ...]]
    activation_bits: Mapping[str, tuple[int, ...]]
    pairs: Mapping[str, frozenset[tuple[int, int]]]

    @property
    def size_log10(self) -> float:
        """Decimal logarithm of the number of assignments (bit-pair rules not deducted)."""
        choices = [*self.keep.values(), *self.weight_bits.values(), *self.activation_bits.values()]
        return sum(math.log10(len(options)) for options in choices)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict; equal spaces give equal text."""
        return {
            "keep": {name: list(counts) for name, counts in sorted(self.keep.items())},
            "weight_bits": {name: list(bits) for name, bits in sorted(self.weight_bits.items())},
            "activation_bits": {name: list(bits) for name, bits in sorted(self.activation_bits.items())},
            "pairs": {name: [list(pair) for pair in sorted(legal)] for name, legal in sorted(self.pairs.items())},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchSpace:
        """Rebuild what `to_json` wrote."""
        keep, weight_bits, activation_bits = (_tuples(data[key]) for key in ("keep", "weight_bits", "activation_bits"))
        pairs = {name: frozenset((w, a) for w, a in legal) for name, legal in data["pairs"].items()}
        return cls(keep, weight_bits, activation_bits, pairs)


def build_space(graph: ModelGraph, device: DeviceProfile, spec: SpaceSpec = SpaceSpec()) -> SearchSpace:
    """Return the space for `graph` on `device` under `spec`.

    Raises ValueError naming the layer, activation or channel group for which no legal choice is left.
    """
    pairs = {layer.name: _layer_pairs(graph, device, spec, layer) for layer in graph.layers}
    activation_bits = {}
    for activation in graph.activations:
        readers = [layer.name for layer in graph.layers if layer.input == activation.id]
        legal = _activation_choices(device, spec, activation.role, [pairs[name] for name in readers])
        if not legal:
            raise ValueError(f"no activation bit-width is legal for {activation.id!r}, read by {readers}")
        activation_bits[activation.id] = legal
    weight_bits = {}
    for layer in graph.layers:
        inputs = set(activation_bits[layer.input])
        legal = _descending(w for w, a in pairs[layer.name] if a in inputs)
        if not legal:
            raise ValueError(f"no (weight, activation) bit pair is legal for layer {layer.name!r}")
        weight_bits[layer.name] = legal
    keep = {}
    for group in graph.groups:
        touched = (*group.producers, *group.consumers)
        widths = {bits for name in touched for bits in weight_bits[name]}
        keep[group.id] = keep_choices(group, device, spec, widths)
    return SearchSpace(keep, weight_bits, activation_bits, pairs)


def keep_choices(
    group: ChannelGroup, device: DeviceProfile, spec: SpaceSpec, weight_bits: Iterable[int] = (8,)
) -> tuple[int, ...]:
    """Return the legal numbers of kept channels of `group`, full width first.

    Besides the full width only multiples count that suit the device at all `weight_bits` of the layers concerned: the
    one next below an odd width is always among them, and a group as narrow as the multiple keeps all its channels.
    Raises ValueError where a largest keep ratio leaves none.
    """
    names = [group.id, *group.producers]
    if group.frozen is not None:
        return (group.channels,)
    smallest = max([spec.min_keep, *_bounds(spec.min_keeps, names)])
    largest = min([1.0, *_bounds(spec.max_keeps, names)])
    if not spec.prune or _matches(spec.freeze, names):
        smallest = 1.0
    multiple = math.lcm(*(device.channel_multiple_for(bits) for bits in weight_bits))
    floor = max(1, math.ceil(smallest * group.channels - ROUNDING))
    ceiling = math.floor(largest * group.channels + ROUNDING)
    counts = {max(multiple, round(ratio * group.channels / multiple) * multiple) for ratio in KEEP_RATIOS}
    counts.add(ceiling // multiple * multiple)
    legal = {count for count in counts if floor <= count <= ceiling} | ({group.channels} if largest == 1.0 else set())
    if not legal:
        detail = f"from {smallest:g} to {largest:g} of {group.channels} channels, a multiple of {multiple}"
        raise ValueError(f"no width is legal for channel group {group.id!r}: {detail}")
    return _descending(legal)


def ends(graph: ModelGraph) -> frozenset[str]:
    """Return the first and last layers: in the order of execution, and those at the network's inputs and outputs."""
    if not graph.layers:
        return frozenset()
    outer = {item.id for item in graph.activations if item.role != "hidden"}
    touching = {layer.name for layer in graph.layers if layer.input in outer or layer.output in outer}
    return frozenset({graph.layers[0].name, graph.layers[-1].name} | touching)


def multiple_violations(graph: ModelGraph, assignment: Assignment, device: DeviceProfile) -> list[str]:
    """Return, for each layer that makes or reads a group cut to a count its device would pad, what is wrong.

    A group that keeps its full width breaks nothing: the multiple is for what is removed.
    """
    found = []
    for group in graph.groups:
        kept = assignment.keep[group.id]
        for name in (*group.producers, *group.consumers) if kept != group.channels else ():
            multiple = device.channel_multiple_for(assignment.weight_bits[name])
            if kept % multiple:
                bits = assignment.weight_bits[name]
                found.append(
                    f"{name}: {kept} channels of group {group.id!r} are no multiple of {multiple} ({bits}-bit weights)"
                )
    return found


def is_legal(graph: ModelGraph, space: SearchSpace, assignment: Assignment, device: DeviceProfile) -> bool:
    """Tell whether an assignment, perhaps made for another device, lies in a space of this one."""
    parts = (
        (space.keep, assignment.keep),
        (space.weight_bits, assignment.weight_bits),
        (space.activation_bits, assignment.activation_bits),
    )
    if any(options.keys() != part.keys() or any(part[name] not in options[name] for name in part)
           for options, part in parts):  # fmt: skip
        return False
    chosen = {layer.name: (assignment.weight_bits[layer.name], assignment.activation_bits[layer.input])
              for layer in graph.layers}  # fmt: skip
    legal = all(pair in space.pairs[name] for name, pair in chosen.items())
    return legal and not multiple_violations(graph, assignment, device)


def widest(graph: ModelGraph, bits: int) -> Assignment:
    """Return the unpruned assignment with `bits` everywhere: 8 gives the W8A8 reference, 32 the float baseline."""
    return Assignment(
        keep={group.id: group.channels for group in graph.groups},
        weight_bits={layer.name: bits for layer in graph.layers},
        activation_bits={item.id: bits for item in graph.activations},
    )


def cheapest(graph: ModelGraph, space: SearchSpace) -> Assignment:
    """Return the assignment with the fewest channels and bits everywhere (a bound; pair rules are not looked at)."""
    return Assignment(
        keep={group.id: min(space.keep[group.id]) for group in graph.groups},
        weight_bits={layer.name: min(space.weight_bits[layer.name]) for layer in graph.layers},
        activation_bits={item.id: min(space.activation_bits[item.id]) for item in graph.activations},
    )


def _layer_pairs(graph: ModelGraph, device: DeviceProfile, spec: SpaceSpec, layer: Layer) -> frozenset[tuple[int, int]]:
    legal = _asked_pairs(device, spec, layer)
    rules = [rule for pattern, rule in spec.bits.items() if fnmatch.fnmatchcase(layer.name, pattern)]
    if spec.first_last is not None and layer.name in ends(graph):
        wide = tuple(range(spec.first_last, FLOAT_BITS + 1))
        rules.append(BitRule(wide, wide))
    is_input = graph.activation[layer.input].role == "input"
    return frozenset((w, a) for w, a in legal if all(rule.allows(w, None if is_input else a) for rule in rules))


def _asked_pairs(device: DeviceProfile, spec: SpaceSpec, layer: Layer) -> frozenset[tuple[int, int]]:
    """Return the device's pairs that the bounds for all layers leave a layer, or the one that is fixed for it."""
    legal = device.pairs_for(layer.kind)
    for pattern, pair in spec.fixed_bits.items():
        if fnmatch.fnmatchcase(layer.name, pattern):
            return frozenset({pair} & set(legal))
    return frozenset(
        (w, a)
        for w, a in legal
        if (spec.weight_bits is None or w in spec.weight_bits)
        and (spec.activation_bits is None or a in spec.activation_bits or a == device.input_bits)
    )


def _activation_choices(
    device: DeviceProfile, spec: SpaceSpec, role: str, readers: list[frozenset[tuple[int, int]]]
) -> tuple[int, ...]:
    if role == "output":
        return (device.output_bits,)
    if role == "input":
        return (device.input_bits,)
    legal = set(device.activation_bits)
    if spec.activation_bits is not None:
        legal &= set(spec.activation_bits)
    for pairs in readers:
        legal &= {a for _, a in pairs}
    return _descending(legal)


def _bounds(bounds: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """Return the bounds whose pattern fits one of the names."""
    return [bound for pattern, bound in bounds.items() if _matches([pattern], names)]


def _matches(patterns: Iterable[str], names: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _tuples(lists: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(values) for name, values in lists.items()}


def _descending(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(values), reverse=True))
