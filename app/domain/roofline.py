"""The time and energy of one operation on a device, in parts that say what the time goes to.

A roofline with what it leaves out: an operation takes the longer of its multiply-accumulates at the reached rate and
its bytes at the pools' bandwidths, channels padded to the device's multiple first; requantization, changes of
precision, fixed overheads and operations that fall back to a host come on top. Where a device has a latency table, the
table gives the time and the roofline only how it is shared out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace

from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.domain.kernels import AUXILIARY, kernels_by_operation
from app.domain.latency import Work
from app.domain.space import Assignment


@dataclass(frozen=True)
class Parts:
    """Milliseconds by cause; they add up to the latency.

    `compute`: the arithmetic of the channels that are there. `padding`: what rounding them up to the multiple adds.
    `memory`: what waiting for bytes adds to the arithmetic. `boundary`: changes of precision. `overhead`: fixed times
    and requantization. `fallback`: operations on the host, and the way there and back.
    """

    compute: float = 0.0
    memory: float = 0.0
    padding: float = 0.0
    boundary: float = 0.0
    overhead: float = 0.0
    fallback: float = 0.0

    @property
    def total(self) -> float:
        """Return the sum in milliseconds."""
        return self.compute + self.memory + self.padding + self.boundary + self.overhead + self.fallback

    @property
    def bound(self) -> str:
        """Return the largest part's name."""
        return max(PARTS, key=lambda part: float(getattr(self, part)))

    def scaled(self, factor: float) -> Parts:
        """Return every part times a factor."""
        return Parts(*(getattr(self, part) * factor for part in PARTS))

    def to_json(self) -> dict[str, float]:
        """Return milliseconds by part."""
        return {part: getattr(self, part) for part in PARTS}


PARTS = tuple(item.name for item in fields(Parts))


def added(parts: Iterable[Parts]) -> Parts:
    """Return the sum of each part."""
    rows = list(parts)
    return Parts(*(sum(getattr(row, part) for row in rows) for part in PARTS))


@dataclass(frozen=True)
class Load:
    """What one operation asks of a device.

    `macs` (padded: `padded_macs`) are multiply-accumulates, elements times window for a step; `requantized` outputs
    (padded: `padded_requantized`) and `converted` ones, whose precision is not that of what was read, are elements.
    `crossings` counts how often data moves between the device and its host because of this operation.
    """

    kind: str
    bits: tuple[int, int]
    macs: int
    padded_macs: int
    activation_bytes: int
    weight_bytes: int
    requantized: int = 0
    padded_requantized: int = 0
    converted: int | None = None
    crossings: int = 0
    works: tuple[Work, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What an operation's time depends on besides itself: crossings to the host by operation (see `crossings`), and
    with a latency table the kernels that run for it."""

    crossings: Mapping[str, int]
    kernels: Mapping[str, tuple[Work, ...]]


def setting(graph: ModelGraph, assignment: Assignment, device: DeviceProfile) -> Setting:
    """Return the setting of every operation under an assignment."""
    works = {} if device.table is None else kernels_by_operation(graph, assignment)
    return Setting(crossings(graph, device), works)


def time_of(load: Load, device: DeviceProfile) -> Parts:
    """Return the time of one operation in parts (milliseconds).

    With a latency table, kernels that only bring tensors into another form are the boundary, and the time of the others
    is shared out as the roofline has it.
    """
    shares = _modelled(load, device)
    if device.table is None:
        return shares
    spent, moving = 0.0, 0.0
    for work in load.works:
        if work.op in AUXILIARY:
            moving += device.table.kernel_ms(work)
        else:
            spent += device.table.kernel_ms(work)
    plain = replace(shares, boundary=0.0)
    return replace(plain.scaled(spent / plain.total), boundary=moving)


def _modelled(load: Load, device: DeviceProfile) -> Parts:
    over, host = device.overheads, device.fallback
    if load.kind in host.ops:
        return Parts(fallback=load.macs / (host.gmacs * 1e6) + load.crossings * host.boundary_us / 1e3)
    rate = device.throughput(*load.bits).rate(load.kind) / 1e3
    compute, padded = load.macs / rate, load.padded_macs / rate
    waiting = load.activation_bytes / (device.activation_pool.gbps * 1e6) + load.weight_bytes / weight_rate(device)
    busy = max(compute, waiting)
    requant = over.requant_ns_per_element * 1e-6
    boundary = 0.0
    if load.converted is not None:
        boundary = over.boundary_us / 1e3 + load.converted * over.boundary_ns_per_element * 1e-6
    return Parts(
        compute=compute,
        memory=busy - compute,
        padding=max(padded, waiting) - busy + (load.padded_requantized - load.requantized) * requant,
        boundary=boundary,
        overhead=over.per_layer_us / 1e3 + load.requantized * requant,
    )


def weight_rate(device: DeviceProfile) -> float:
    """Return the bytes per millisecond at which layers read weights: from the cache where there is one.

    A cache without a bandwidth of its own is as fast as the activation pool.
    """
    store = device.weight_store
    if not store.cache_bytes:
        return store.gbps * 1e6
    return (device.activation_pool.gbps if store.cache_gbps is None else store.cache_gbps) * 1e6


def streamed_ms(weight_bytes: int, device: DeviceProfile) -> float:
    """Return the time to stream the weights that the cache has no room for (0 without a cache, or with a table)."""
    store = device.weight_store
    if not store.cache_bytes or device.table is not None:
        return 0.0
    return max(0, weight_bytes - store.cache_bytes) / (store.gbps * 1e6)


def fixed_ms(device: DeviceProfile, works: Iterable[Work] = ()) -> float:
    """Return what every inference takes besides its operations; `works` are the kernels that run for its inputs."""
    table = device.table
    if table is None:
        return device.overheads.per_inference_us / 1e3
    return table.overhead_ms + sum(table.kernel_ms(work) for work in works)


def energy_mj(load: Load, latency_ms: float, device: DeviceProfile) -> float:
    """Return millijoules: arithmetic, bytes moved, and the power drawn while waiting."""
    power = device.power
    moved = power.pj_per_byte * load.activation_bytes + power.weight_pj * load.weight_bytes
    return (mac_pj(load.bits, device) * load.macs + moved) * 1e-9 + power.idle_mw * latency_ms * 1e-3


def mac_pj(bits: tuple[int, int], device: DeviceProfile) -> float:
    """Return picojoules per multiply-accumulate: of the narrowest listed pair that is not narrower than `bits`, or of
    the widest one listed (0 where the profile lists none)."""
    listed = {_pair(name): value for name, value in device.power.pj_per_mac.items()}
    fitting = [pair for pair in listed if pair[0] >= bits[0] and pair[1] >= bits[1]]
    if fitting:
        return listed[min(fitting, key=lambda pair: (pair[0] * pair[1], listed[pair]))]
    return listed[max(listed)] if listed else 0.0


def _pair(name: str) -> tuple[int, int]:
    weight, activation = name.split("x")
    return int(weight), int(activation)


def crossings(graph: ModelGraph, device: DeviceProfile) -> Mapping[str, int]:
    """Return how often data changes sides by operation: twice for each run of operations on the host, charged to the
    first of them."""
    if not device.fallback.ops:
        return {}
    ops = sorted((item.step, item.name, item.kind in device.fallback.ops) for item in graph.ops)
    found, before = {}, False
    for _, name, falls in ops:
        if falls and not before:
            found[name] = 2
        before = falls
    return found
