"""What a device profile record may say, and what its fields must agree on: wrong fields are named by pointers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, JsonValue, StringConstraints, ValidationError

from app.api.schemas import Strict
from app.domain.device import OPERATIONS
from app.problems import Problem, field_error

Json = dict[str, Any]
Fault = tuple[str, str]

SLUG = "invalid-device-profile"
MAX_TABLE_FIGURES = 10_000
KINDS = ("conv", "depthwise", "linear")

Kind = Literal["conv", "depthwise", "linear"]
KindOrDefault = Literal["conv", "depthwise", "linear", "default"]
Bits = Annotated[int, Field(ge=2, le=32, strict=True)]
Rate = Annotated[FiniteFloat, Field(ge=1e-6, le=1e9, strict=True)]
Share = Annotated[FiniteFloat, Field(gt=0, le=1, strict=True)]
Cost = Annotated[FiniteFloat, Field(ge=0, le=1e12, strict=True)]
Bytes = Annotated[int, Field(ge=0, le=2**53, strict=True)]
Line = Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00-\x1f\x7f\u202a-\u202e\u2066-\u2069]*$")]
PairName = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,2}x[0-9]{1,2}$")]
BitsName = Annotated[str, StringConstraints(pattern=r"^([2-9]|[12][0-9]|3[0-2])$")]
MultipleName = Annotated[str, StringConstraints(pattern=r"^(default|w([2-9]|[12][0-9]|3[0-2]))$")]


class ComputeIn(Strict):
    """Peak throughput of one bit pair (giga-MACs per second) and efficiency per op kind."""

    w: Bits
    a: Bits
    gmacs: Rate
    eff: Annotated[dict[str, Share], Field(max_length=128)] = {}


class PoolIn(Strict):
    """A memory: capacity in bytes (null: no limit), gigabytes per second, and a cache."""

    bytes: Annotated[int, Field(gt=0, le=2**53, strict=True)] | None = None
    gbps: Rate
    cache_bytes: Bytes = 0
    cache_gbps: Rate | None = None


class MemoryIn(Strict):
    """The device's memories."""

    activation_pool: PoolIn
    weight_store: PoolIn


class ForcedIn(Strict):
    """Widths of the network's input and output."""

    input: Bits = 8
    output: Bits = 32


class SparsityIn(Strict):
    """Structured sparsity that the device computes faster."""

    pattern: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]?:[1-9][0-9]?$")]
    speedup: Annotated[FiniteFloat, Field(ge=1, le=100, strict=True)]


class RulesIn(Strict):
    """What the device may run."""

    pairs: Annotated[
        dict[KindOrDefault, Annotated[list[tuple[Bits, Bits]], Field(min_length=1, max_length=256)]],
        Field(min_length=1),
    ]
    per_channel_weights: list[Kind] = ["conv", "depthwise", "linear"]
    channel_multiple: dict[MultipleName, Annotated[int, Field(ge=1, le=1024, strict=True)]] = {"default": 1}
    storage_bits: dict[BitsName, Bits] = {}
    forced_bits: ForcedIn = ForcedIn()
    weight_scheme: Literal["symmetric", "asymmetric"] = "symmetric"
    activation_scheme: Literal["symmetric", "asymmetric"] = "asymmetric"
    scale: Literal["float", "power-of-two"] = "float"
    accumulator_bits: Annotated[int, Field(ge=8, le=64, strict=True)] = 32
    saturating_pairs: bool = False
    skippable_channels: bool = False
    sparsity: SparsityIn | None = None


class OverheadsIn(Strict):
    """Fixed times."""

    per_inference_us: Cost = 0.0
    per_layer_us: Cost = 0.0
    requant_ns_per_elem: Cost = 0.0
    boundary_us: Cost = 0.0
    boundary_ns_per_elem: Cost = 0.0


class PowerIn(Strict):
    """Energy figures."""

    pj_per_mac: dict[PairName, Cost] = {}
    pj_per_byte: Cost = 0.0
    pj_per_weight_byte: Cost | None = None
    idle_mw: Cost = 0.0


class FallbackIn(Strict):
    """Operations that a host processor runs, and the price of going there."""

    ops: Annotated[list[str], Field(max_length=128)] = []
    gmacs: Rate = 1.0
    boundary_us: Cost = 0.0


class FigureIn(Strict):
    """Where a figure comes from."""

    source: Annotated[Line, Field(min_length=1)]
    confidence: Literal["measured", "high", "medium", "low", "definition"]


class EvidenceIn(Strict):
    """Where the figures come from."""

    kind: Annotated[Line, Field(min_length=1, max_length=64)] = "datasheet"
    sources: Annotated[list[Line], Field(max_length=64)] = []
    figures: Annotated[dict[str, FigureIn], Field(max_length=256)] = {}
    error_p90: Cost | None = None


class TableIn(Strict):
    """A latency table: figures by kernel class, correction, errors, and how it was measured."""

    coefficients: Annotated[dict[Line, dict[Line, Cost]], Field(max_length=MAX_TABLE_FIGURES)]
    correction: Annotated[dict[Line, Cost], Field(max_length=1000)] = {}
    errors: Annotated[dict[Line, Cost], Field(max_length=1000)] = {}
    conditions: Annotated[dict[str, JsonValue], Field(max_length=200)] = {}
    saturating: bool = True


class DeviceIn(Strict):
    """A device profile record. `name`, `compute`, `memory` and `rules.pairs` are needed, the rest has defaults."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    title: Annotated[Line, Field(max_length=200)] = ""
    unit: Literal["cpu", "gpu", "npu", "mcu", "dsp"] = "cpu"
    toolchain: Annotated[Line, Field(max_length=200)] = ""
    compute: Annotated[list[ComputeIn], Field(min_length=1, max_length=64)]
    memory: MemoryIn
    rules: RulesIn
    overheads: OverheadsIn = OverheadsIn()
    power: PowerIn = PowerIn()
    fallback: FallbackIn = FallbackIn()
    evidence: EvidenceIn = EvidenceIn()
    latency_table: TableIn | None = None


def checked_profile(data: Any) -> Json:
    """Return a profile record with every default filled in.

    Raises Problem invalid-device-profile with one error per wrong field. What fields must agree on is looked at once
    each is legal by itself.
    """
    unreadable = [
        field_error(pointer, "text that can't be stored: NUL or half a surrogate") for pointer in _texts(data)
    ]
    if unreadable:
        raise _refused(unreadable)
    try:
        profile = DeviceIn.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise _refused([field_error(_pointer(item["loc"]), item["msg"], item["type"]) for item in found]) from error
    record = profile.model_dump(mode="json")
    faults = [*_compute_faults(profile), *_rule_faults(profile), *_name_faults(profile), *_evidence_faults(record)]
    faults += _table_faults(profile.latency_table)
    if faults:
        raise _refused([field_error(pointer, detail) for pointer, detail in faults])
    return record


def _refused(errors: list[Json]) -> Problem:
    unique = list({error["pointer"]: error for error in reversed(errors)}.values())[::-1]
    return Problem(SLUG, "; ".join(f"{item['pointer']}: {item['detail']}" for item in unique[:5]), unique[:200])


def _texts(value: Any, pointer: str = "") -> Iterator[str]:
    """Yield the pointers of texts and keys that neither database nor answer could carry."""
    if isinstance(value, dict):
        for key, item in value.items():
            here = f"{pointer}/{escaped(key)}"
            if _is_unreadable(str(key)):
                yield here.encode("utf-8", "replace").decode()
            else:
                yield from _texts(item, here)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{pointer}/{index}")
    elif isinstance(value, str) and _is_unreadable(value):
        yield pointer


def _is_unreadable(text: str) -> bool:
    return "\0" in text or any("\ud800" <= char <= "\udfff" for char in text)


def _pointer(parts: tuple[str | int, ...]) -> str:
    """Return the JSON pointer of a place; pydantic's mark for a wrong key means the key itself."""
    return "".join(f"/{escaped(part)}" for part in parts if part != "[key]")


def escaped(part: str | int) -> str:
    """Return one step of a JSON pointer (RFC 6901)."""
    return str(part).replace("~", "~0").replace("/", "~1")


def _compute_faults(profile: DeviceIn) -> Iterator[Fault]:
    seen: dict[tuple[int, int], int] = {}
    for index, entry in enumerate(profile.compute):
        first = seen.setdefault((entry.w, entry.a), index)
        if first != index:
            yield f"/compute/{index}", f"w{entry.w}a{entry.a} has an entry already: /compute/{first}"
        for kind in entry.eff:
            if kind not in (*KINDS, "default") and kind not in OPERATIONS:
                yield f"/compute/{index}/eff/{escaped(kind)}", "no op kind of that name"


def _rule_faults(profile: DeviceIn) -> Iterator[Fault]:
    rules = profile.rules
    missing = [kind for kind in KINDS if kind not in rules.pairs]
    if missing and "default" not in rules.pairs:
        yield "/rules/pairs", f"no bit pairs for {', '.join(missing)}, and no default"
    for kind, pairs in rules.pairs.items():
        yield from _pair_faults(profile, kind, pairs)
    if rules.forced_bits.input not in {a for pairs in rules.pairs.values() for _, a in pairs}:
        yield "/rules/forced_bits/input", f"no legal pair reads {rules.forced_bits.input}-bit activations"
    for bits, stored in rules.storage_bits.items():
        if stored < int(bits):
            yield f"/rules/storage_bits/{bits}", f"{stored} bits can't store a weight of {bits}"
    if rules.sparsity is not None:
        kept, of = map(int, rules.sparsity.pattern.split(":"))
        if kept >= of:
            yield "/rules/sparsity/pattern", "N:M keeps N of M weights, N below M"


def _pair_faults(profile: DeviceIn, kind: str, pairs: list[tuple[int, int]]) -> Iterator[Fault]:
    for index, (w, a) in enumerate(pairs):
        where = f"/rules/pairs/{kind}/{index}"
        if (w, a) in pairs[:index]:
            yield where, f"[{w}, {a}] is listed twice"
        elif not any(entry.w >= w and entry.a >= a for entry in profile.compute):
            yield where, f"no compute entry is wide enough for [{w}, {a}]"


def _name_faults(profile: DeviceIn) -> Iterator[Fault]:
    for index, name in enumerate(profile.fallback.ops):
        if name not in OPERATIONS and name not in KINDS:
            yield f"/fallback/ops/{index}", f"no operation is called {name[:64]!r}"


def _evidence_faults(record: Json) -> Iterator[Fault]:
    for pointer in record["evidence"]["figures"]:
        if not points_somewhere(record, pointer):
            yield f"/evidence/figures/{escaped(pointer)}", "points at no field of this record"


def points_somewhere(record: Any, pointer: str) -> bool:
    """Tell whether a JSON pointer (a figure's address, or a prefix of some) leads to a field of a record."""
    place = record
    for step in pointer.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list):
            if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < len(place)):
                return False
            place = place[int(key)]
        elif isinstance(place, dict) and key in place:
            place = place[key]
        else:
            return False
    return pointer.startswith("/")


def _table_faults(table: TableIn | None) -> Iterator[Fault]:
    if table is None:
        return
    figures = sum(len(row) for row in table.coefficients.values()) + len(table.correction) + len(table.errors)
    if figures > MAX_TABLE_FIGURES:
        yield "/latency_table/coefficients", f"{figures} figures; at most {MAX_TABLE_FIGURES}"
    if not all(math.isfinite(value) for value in _numbers(table.conditions)):
        yield "/latency_table/conditions", "numbers are finite"


def _numbers(value: JsonValue) -> Iterator[float]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, float):
        yield value
