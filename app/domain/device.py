"""Device profiles: what a device may compute, how fast, from which memory; frozen and versioned.

The record follows Vela's, AIMET's and MCT's platform files: legal bit pairs per op kind, throughput per pair with an
efficiency per op kind, memory pools with bandwidth, overheads, power, and the evidence behind the figures. Validation
with field-level messages lives at the rim; these values are assumed valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from app.domain.latency import LatencyTable

Pair = tuple[int, int]
Evidence = Literal["modelled", "interpolated", "measured"]
Scheme = Literal["symmetric", "asymmetric"]

_NAMES = """
    abs add amax amin argmax argmin attention avg_pool1d avg_pool2d avg_pool3d batch_norm cast channel_pad clamp
    concat conv conv_transpose cos cumsum div elu embedding eq erf exp expand expand_batch flatten floor ge gelu
    group_norm gt hardsigmoid hardswish layer_norm le leaky_relu linear local_response_norm log log_softmax
    logical_and logical_not logical_or lt matmul max_pool1d max_pool2d max_pool3d maximum mean minimum mish mul
    ne neg pad permute pixel_shuffle pixel_unshuffle pow prelu reciprocal recurrent relu reshape resize rms_norm
    rsqrt selu sigmoid sign silu sin slice softmax softplus softsign sqrt sub sum take tanh trunc where
"""
OPERATIONS = frozenset(_NAMES.split())
"""Names of the op table, which efficiencies and fallbacks may be given for besides the kinds of layers."""


@dataclass(frozen=True)
class Throughput:
    """Peak of one (weight bits, activation bits) pair in giga-MACs per second, and efficiency per op kind in (0, 1]."""

    weight_bits: int
    activation_bits: int
    gmacs: float
    efficiency: Mapping[str, float] = field(default_factory=dict)

    def rate(self, kind: str) -> float:
        """Return the MACs per second that layers of `kind` reach."""
        return self.gmacs * 1e9 * self.efficiency.get(kind, self.efficiency.get("default", 0.5))


@dataclass(frozen=True)
class MemoryPool:
    """Capacity in bytes (None: not a limit) and bandwidth in gigabytes per second.

    A weight store may have a cache: weights that fit in `cache_bytes` stay there and are read at `cache_gbps`, the
    excess is streamed at `gbps` for every inference (the Edge TPU's parameter cache: a step, not a slope).
    """

    bytes: int | None
    gbps: float
    cache_bytes: int = 0
    cache_gbps: float | None = None


@dataclass(frozen=True)
class Overheads:
    """Fixed times: microseconds per inference and per layer or step, nanoseconds per requantized element.

    `boundary_us` and `boundary_ns_per_element` are paid where a layer reads one activation width and writes another.
    """

    per_inference_us: float = 0.0
    per_layer_us: float = 0.0
    requant_ns_per_element: float = 0.0
    boundary_us: float = 0.0
    boundary_ns_per_element: float = 0.0


@dataclass(frozen=True)
class Power:
    """Picojoules per MAC for each "WxA" pair and per byte of activations and weights moved; milliwatts while running.

    Zero where the profile does not say.
    """

    pj_per_mac: Mapping[str, float] = field(default_factory=dict)
    pj_per_byte: float = 0.0
    pj_per_weight_byte: float | None = None
    idle_mw: float = 0.0

    @property
    def weight_pj(self) -> float:
        """Picojoules per byte of weights moved: their own, else those of any byte."""
        return self.pj_per_byte if self.pj_per_weight_byte is None else self.pj_per_weight_byte


@dataclass(frozen=True)
class Fallback:
    """What happens to operations the accelerator lacks: they run on a host processor, at a price.

    `ops` lists op table names (and layer kinds) that fall back; `gmacs` the host's giga-MACs (or elements) per second;
    `boundary_us` is paid each time data leaves the accelerator and each time it comes back.
    """

    ops: frozenset[str] = frozenset()
    gmacs: float = 1.0
    boundary_us: float = 0.0


@dataclass(frozen=True)
class Sparsity:
    """Structured sparsity the device computes faster: pattern "N:M" and the speed-up of dense layers that keep it."""

    pattern: str
    speedup: float


@dataclass(frozen=True)
class Figure:
    """Where one figure of a profile comes from, and how far it can be trusted."""

    source: str
    confidence: Literal["measured", "high", "medium", "low", "definition"]


@dataclass(frozen=True)
class DeviceProfile:
    """One immutable revision of a device profile.

    `pairs` lists legal (weight bits, activation bits) per op kind, with "default" for kinds not listed.
    `storage_bits` maps a weight bit-width to the width it is stored at (absent: packed at its own width); what it is
    computed at follows from `compute` (see `throughput`). `figures` tells by JSON pointer into the record, or a prefix
    of one, where figures come from. `table` replaces the roofline where the device was calibrated. `error_p90` is the
    relative error that nine of ten latency predictions stay below (None: never checked).
    """

    name: str
    unit: str
    pairs: Mapping[str, tuple[Pair, ...]]
    compute: tuple[Throughput, ...]
    activation_pool: MemoryPool
    weight_store: MemoryPool
    overheads: Overheads = Overheads()
    power: Power = Power()
    channel_multiple: Mapping[str, int] = field(default_factory=lambda: {"default": 1})
    storage_bits: Mapping[int, int] = field(default_factory=dict)
    per_channel_weights: tuple[str, ...] = ("conv", "depthwise", "linear")
    input_bits: int = 8
    output_bits: int = 32
    evidence: str = "datasheet"
    sources: tuple[str, ...] = ()
    title: str = ""
    toolchain: str = ""
    weight_scheme: Scheme = "symmetric"
    activation_scheme: Scheme = "asymmetric"
    scale: Literal["float", "power-of-two"] = "float"
    accumulator_bits: int = 32
    saturating_pairs: bool = False
    skippable_channels: bool = False
    sparsity: Sparsity | None = None
    fallback: Fallback = Fallback()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    error_p90: float | None = None
    table: LatencyTable | None = None

    @property
    def activation_bits(self) -> tuple[int, ...]:
        """Every activation bit-width some op kind accepts, widest first."""
        return tuple(sorted({a for pairs in self.pairs.values() for _, a in pairs}, reverse=True))

    def pairs_for(self, kind: str) -> tuple[Pair, ...]:
        """Return the legal (weight, activation) bit pairs of an op kind."""
        return self.pairs.get(kind) or self.pairs.get("default", ())

    def channel_multiple_for(self, weight_bits: int) -> int:
        """Return the channel multiple that layers with `weight_bits` are padded to: 1 where channels can be skipped."""
        if self.skippable_channels:
            return 1
        return self.channel_multiple.get(f"w{weight_bits}", self.channel_multiple.get("default", 1))

    def stored_bits(self, weight_bits: int) -> int:
        """Return the width in bits at which a weight of `weight_bits` is stored."""
        return self.storage_bits.get(weight_bits, weight_bits)

    def throughput(self, weight_bits: int, activation_bits: int) -> Throughput:
        """Return the slowest-that-fits compute entry: the narrowest pair not narrower than the one asked for.

        Bits below the smallest computed width save bytes, not time. Falls back to the widest entry (float).
        """
        fitting = [
            entry
            for entry in self.compute
            if entry.weight_bits >= weight_bits and entry.activation_bits >= activation_bits
        ]
        if not fitting:
            return max(self.compute, key=lambda entry: (entry.weight_bits, entry.activation_bits))
        return min(fitting, key=lambda entry: (entry.weight_bits * entry.activation_bits, -entry.gmacs))

    def to_json(self) -> dict[str, Any]:
        """Return the profile record as users write it; `from_json` is its inverse."""
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "toolchain": self.toolchain,
            "compute": [
                {"w": e.weight_bits, "a": e.activation_bits, "gmacs": e.gmacs, "eff": dict(e.efficiency)}
                for e in self.compute
            ],
            "memory": {
                "activation_pool": asdict(self.activation_pool),
                "weight_store": asdict(self.weight_store),
            },
            "rules": self._rules_json(),
            "overheads": {
                "per_inference_us": self.overheads.per_inference_us,
                "per_layer_us": self.overheads.per_layer_us,
                "requant_ns_per_elem": self.overheads.requant_ns_per_element,
                "boundary_us": self.overheads.boundary_us,
                "boundary_ns_per_elem": self.overheads.boundary_ns_per_element,
            },
            "power": {**asdict(self.power), "pj_per_mac": dict(self.power.pj_per_mac)},
            "fallback": {**asdict(self.fallback), "ops": sorted(self.fallback.ops)},
            "evidence": {
                "kind": self.evidence,
                "sources": list(self.sources),
                "figures": {pointer: asdict(figure) for pointer, figure in self.figures.items()},
                "error_p90": self.error_p90,
            },
            "latency_table": self.table and self.table.to_json(),
        }

    def _rules_json(self) -> dict[str, Any]:
        return {
            "pairs": {kind: [list(pair) for pair in pairs] for kind, pairs in self.pairs.items()},
            "per_channel_weights": list(self.per_channel_weights),
            "channel_multiple": dict(self.channel_multiple),
            "storage_bits": {str(bits): stored for bits, stored in self.storage_bits.items()},
            "forced_bits": {"input": self.input_bits, "output": self.output_bits},
            "weight_scheme": self.weight_scheme,
            "activation_scheme": self.activation_scheme,
            "scale": self.scale,
            "accumulator_bits": self.accumulator_bits,
            "saturating_pairs": self.saturating_pairs,
            "skippable_channels": self.skippable_channels,
            "sparsity": self.sparsity and asdict(self.sparsity),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DeviceProfile:
        """Build a profile from a record that the rim has validated."""
        rules, memory, over = data["rules"], data["memory"], data.get("overheads", {})
        power, evidence = data.get("power", {}), data.get("evidence", {})
        return cls(
            name=data["name"],
            unit=data.get("unit", "cpu"),
            pairs={kind: tuple((w, a) for w, a in pairs) for kind, pairs in rules["pairs"].items()},
            compute=tuple(Throughput(e["w"], e["a"], e["gmacs"], dict(e.get("eff", {}))) for e in data["compute"]),
            activation_pool=_pool(memory["activation_pool"]),
            weight_store=_pool(memory["weight_store"]),
            overheads=Overheads(
                over.get("per_inference_us", 0.0),
                over.get("per_layer_us", 0.0),
                over.get("requant_ns_per_elem", 0.0),
                over.get("boundary_us", 0.0),
                over.get("boundary_ns_per_elem", 0.0),
            ),
            power=Power(**{**power, "pj_per_mac": dict(power.get("pj_per_mac", {}))}),
            fallback=_fallback(data.get("fallback") or {}),
            channel_multiple=dict(rules.get("channel_multiple", {"default": 1})),
            storage_bits={int(bits): stored for bits, stored in rules.get("storage_bits", {}).items()},
            per_channel_weights=tuple(rules.get("per_channel_weights", ("conv", "depthwise", "linear"))),
            input_bits=rules.get("forced_bits", {}).get("input", 8),
            output_bits=rules.get("forced_bits", {}).get("output", 32),
            evidence=evidence.get("kind", "datasheet"),
            sources=tuple(evidence.get("sources", ())),
            title=data.get("title", ""),
            toolchain=data.get("toolchain", ""),
            weight_scheme=rules.get("weight_scheme", "symmetric"),
            activation_scheme=rules.get("activation_scheme", "asymmetric"),
            scale=rules.get("scale", "float"),
            accumulator_bits=rules.get("accumulator_bits", 32),
            saturating_pairs=rules.get("saturating_pairs", False),
            skippable_channels=rules.get("skippable_channels", False),
            sparsity=Sparsity(**rules["sparsity"]) if rules.get("sparsity") else None,
            figures={pointer: Figure(**item) for pointer, item in evidence.get("figures", {}).items()},
            error_p90=evidence.get("error_p90"),
            table=LatencyTable.from_json(data["latency_table"]) if data.get("latency_table") else None,
        )


def figure_of(figures: Mapping[str, Any], pointer: str) -> Any:
    """Return the entry of `figures` that covers a JSON pointer, the longest prefix of it; None where none does."""
    while pointer:
        if pointer in figures:
            return figures[pointer]
        pointer = pointer.rpartition("/")[0]
    return None


def _pool(data: Mapping[str, Any]) -> MemoryPool:
    return MemoryPool(data.get("bytes"), data["gbps"], data.get("cache_bytes", 0), data.get("cache_gbps"))


def _fallback(data: Mapping[str, Any]) -> Fallback:
    return Fallback(frozenset(data.get("ops", ())), data.get("gmacs", 1.0), data.get("boundary_us", 0.0))
