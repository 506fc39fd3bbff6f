"""What a profile record may say: every wrong field is named by its pointer, and nothing right is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.device_schema import MAX_TABLE_FIGURES, checked_profile, points_somewhere
from app.domain.device import (
    DeviceProfile,
    Fallback,
    Figure,
    MemoryPool,
    Overheads,
    Power,
    Sparsity,
    Throughput,
)
from app.domain.latency import LatencyTable
from app.problems import Problem

Json = dict[str, Any]
TABLE = {"coefficients": {"conv.int8": {"calls": 0.01}}, "correction": {}, "errors": {}, "conditions": {}}
RECORD: Json = {
    "name": "board",
    "compute": [{"w": 8, "a": 8, "gmacs": 4.0, "eff": {"conv": 0.5}}, {"w": 4, "a": 8, "gmacs": 8.0}],
    "memory": {"activation_pool": {"bytes": 1000, "gbps": 2.0}, "weight_store": {"bytes": None, "gbps": 0.5}},
    "rules": {
        "pairs": {"default": [[8, 8], [4, 8]]},
        "channel_multiple": {"default": 8, "w4": 16},
        "storage_bits": {"4": 8},
        "sparsity": {"pattern": "2:4", "speedup": 1.5},
    },
    "overheads": {"per_layer_us": 3},
    "power": {"pj_per_mac": {"8x8": 1.0}},
    "fallback": {"ops": ["softmax"], "gmacs": 0.5, "boundary_us": 30},
    "evidence": {"figures": {"/compute/0/gmacs": {"source": "a data sheet", "confidence": "high"}}},
    "latency_table": TABLE,
}
NAN, INF = float("nan"), float("inf")
FIGURE = {"source": "x", "confidence": "high"}
WRONG: list[tuple[str, Any, str]] = [
    ("name", "Board One", "/name"),
    ("name", "a@3", "/name"),
    ("unit", "tpu", "/unit"),
    ("title", "x" * 201, "/title"),
    ("weight", 3, "/weight"),
    ("compute", [], "/compute"),
    ("compute/0/w", 0, "/compute/0/w"),
    ("compute/0/w", 1.5, "/compute/0/w"),
    ("compute/0/w", "8", "/compute/0/w"),
    ("compute/0/a", 64, "/compute/0/a"),
    ("compute/0/a", True, "/compute/0/a"),
    ("compute/0/gmacs", -4.0, "/compute/0/gmacs"),
    ("compute/0/gmacs", 0, "/compute/0/gmacs"),
    ("compute/0/gmacs", INF, "/compute/0/gmacs"),
    ("compute/0/gmacs", NAN, "/compute/0/gmacs"),
    ("compute/0/eff/conv", 1.5, "/compute/0/eff/conv"),
    ("compute/0/eff/conv", 0, "/compute/0/eff/conv"),
    ("compute/0/eff/convv", 0.5, "/compute/0/eff/convv"),
    ("compute/1", {"w": 8, "a": 8, "gmacs": 2.0}, "/compute/1"),
    ("memory/activation_pool/bytes", 0, "/memory/activation_pool/bytes"),
    ("memory/activation_pool/bytes", 1.5, "/memory/activation_pool/bytes"),
    ("memory/weight_store/gbps", 0, "/memory/weight_store/gbps"),
    ("memory/weight_store/gbps", -INF, "/memory/weight_store/gbps"),
    ("memory/weight_store/cache_bytes", -1, "/memory/weight_store/cache_bytes"),
    ("memory/weight_store/cache_gbps", 0, "/memory/weight_store/cache_gbps"),
    ("memory/weight_store/speed", 1, "/memory/weight_store/speed"),
    ("memory/weight_store", None, "/memory/weight_store"),
    ("rules/pairs", {}, "/rules/pairs"),
    ("rules/pairs", {"conv": [[8, 8]]}, "/rules/pairs"),
    ("rules/pairs/default", [], "/rules/pairs/default"),
    ("rules/pairs/default/0", [8], "/rules/pairs/default/0/1"),
    ("rules/pairs/default/0/0", 1, "/rules/pairs/default/0/0"),
    ("rules/pairs/default/0/1", 1.5, "/rules/pairs/default/0/1"),
    ("rules/pairs/default/1", [8, 8], "/rules/pairs/default/1"),
    ("rules/pairs/default/1", [16, 8], "/rules/pairs/default/1"),
    ("rules/pairs/default/1", [4, 16], "/rules/pairs/default/1"),
    ("rules/pairs/pooling", [[8, 8]], "/rules/pairs/pooling"),
    ("rules/per_channel_weights", ["pool"], "/rules/per_channel_weights/0"),
    ("rules/channel_multiple/default", 0, "/rules/channel_multiple/default"),
    ("rules/channel_multiple/w64", 8, "/rules/channel_multiple/w64"),
    ("rules/storage_bits/4", 2, "/rules/storage_bits/4"),
    ("rules/storage_bits/4", 64, "/rules/storage_bits/4"),
    ("rules/storage_bits/four", 8, "/rules/storage_bits/four"),
    ("rules/forced_bits", {"input": 16}, "/rules/forced_bits/input"),
    ("rules/forced_bits", {"output": 0}, "/rules/forced_bits/output"),
    ("rules/weight_scheme", "skewed", "/rules/weight_scheme"),
    ("rules/activation_scheme", "none", "/rules/activation_scheme"),
    ("rules/scale", "log", "/rules/scale"),
    ("rules/accumulator_bits", 4, "/rules/accumulator_bits"),
    ("rules/skippable_channels", "maybe", "/rules/skippable_channels"),
    ("rules/sparsity/pattern", "half", "/rules/sparsity/pattern"),
    ("rules/sparsity/pattern", "4:2", "/rules/sparsity/pattern"),
    ("rules/sparsity/speedup", 0.5, "/rules/sparsity/speedup"),
    ("overheads/per_layer_us", -1, "/overheads/per_layer_us"),
    ("overheads/boundary_us", INF, "/overheads/boundary_us"),
    ("overheads/per_layer_ms", 1, "/overheads/per_layer_ms"),
    ("power/pj_per_mac/8x8", -1, "/power/pj_per_mac/8x8"),
    ("power/pj_per_mac/int8", 1, "/power/pj_per_mac/int8"),
    ("power/idle_mw", NAN, "/power/idle_mw"),
    ("fallback/ops/0", "warp", "/fallback/ops/0"),
    ("fallback/gmacs", 0, "/fallback/gmacs"),
    ("evidence/error_p90", -0.1, "/evidence/error_p90"),
    ("evidence/figures/~1compute~12~1gmacs", FIGURE, "/evidence/figures/~1compute~12~1gmacs"),
    ("evidence/figures/compute", FIGURE, "/evidence/figures/compute"),
    ("evidence/figures/~1power~1pj", FIGURE, "/evidence/figures/~1power~1pj"),
    ("evidence/figures/~1compute~10~1gmacs/confidence", "sure", "/evidence/figures/~1compute~10~1gmacs/confidence"),
    ("evidence/figures/~1compute~1" + "9" * 5000, FIGURE, "/evidence/figures/~1compute~1" + "9" * 5000),
    ("compute/0/eff/\ud800", 0.5, "/compute/0/eff/?"),
    ("latency_table/conditions/host", "\ud800", "/latency_table/conditions/host"),
    ("latency_table/conditions/ho\0st", 1, "/latency_table/conditions/ho\0st"),
    ("title", "a\0", "/title"),
    ("latency_table", {}, "/latency_table/coefficients"),
    ("latency_table/coefficients/conv.int8/calls", -1, "/latency_table/coefficients/conv.int8/calls"),
    ("latency_table/coefficients/conv.int8/calls", NAN, "/latency_table/coefficients/conv.int8/calls"),
    ("latency_table/correction/int8", INF, "/latency_table/correction/int8"),
    ("latency_table/conditions/load", NAN, "/latency_table/conditions"),
]


def changed(path: str, value: Any) -> Json:
    record = copy.deepcopy(RECORD)
    place: Any = record
    *steps, last = [step.replace("~1", "/") for step in path.split("/")]
    for step in steps:
        place = place[int(step)] if isinstance(place, list) else place[step]
    place[int(last) if isinstance(place, list) else last] = value
    return record


def refused(record: Any) -> list[str]:
    with pytest.raises(Problem) as caught:
        checked_profile(record)
    assert caught.value.slug == "invalid-device-profile"
    return [error["pointer"] for error in caught.value.errors]


@pytest.mark.parametrize(
    ("path", "value", "pointer"), WRONG, ids=[f"{path!a:.60}={value!a:.20}" for path, value, _ in WRONG]
)
def test_profile_when_one_field_is_wrong_then_just_that_field_is_named(path: str, value: Any, pointer: str) -> None:
    assert refused(changed(path, value)) == [pointer]


def test_profile_when_several_fields_are_wrong_then_each_is_named_once() -> None:
    record = changed("compute/0/gmacs", -1)
    record["rules"]["channel_multiple"]["default"] = 0
    record["wings"] = 2
    assert refused(record) == ["/compute/0/gmacs", "/rules/channel_multiple/default", "/wings"]


@pytest.mark.parametrize("field", ["name", "compute", "memory", "rules"])
def test_profile_when_a_needed_field_is_missing_then_it_is_named(field: str) -> None:
    assert refused({key: value for key, value in RECORD.items() if key != field}) == [f"/{field}"]


@pytest.mark.parametrize("record", [None, [], "board", 8])
def test_profile_when_it_is_no_mapping_then_the_record_itself_is_named(record: Any) -> None:
    assert refused(record) == [""]


@pytest.mark.fault(59)
def test_table_when_it_has_a_million_rows_then_refused_and_ten_thousand_figures_pass() -> None:
    rows = {f"k{index}": {"calls": 1.0} for index in range(1_000_000)}
    assert refused(changed("latency_table/coefficients", rows)) == ["/latency_table/coefficients"]
    wide = {"conv": {f"k{index}": 1.0 for index in range(MAX_TABLE_FIGURES)}}
    assert checked_profile(changed("latency_table/coefficients", wide))["latency_table"]["coefficients"] == wide
    wide["conv"]["one-more"] = 1.0
    assert refused(changed("latency_table/coefficients", wide)) == ["/latency_table/coefficients"]


def test_profile_when_only_the_needed_fields_are_given_then_the_rest_has_defaults() -> None:
    short = {key: RECORD[key] for key in ("name", "compute", "memory")} | {"rules": {"pairs": {"default": [[8, 8]]}}}
    record = checked_profile(short)
    device = DeviceProfile.from_json(record)
    assert (device.unit, device.input_bits, device.output_bits, device.channel_multiple_for(8)) == ("cpu", 8, 32, 1)
    assert (device.fallback, device.table, device.error_p90) == (Fallback(), None, None)
    assert checked_profile(record) == record


def test_pointer_when_followed_then_escapes_and_list_places_count() -> None:
    record = {"a/b": {"~": [1, 2]}}
    assert points_somewhere(record, "/a~1b/~0/1")
    assert not points_somewhere(record, "/a~1b/~0/2")
    assert not points_somewhere(record, "/a~1b/~0/-1")
    assert not points_somewhere(record, "a~1b")


bits = st.sampled_from((2, 3, 4, 5, 6, 8, 16, 32))
cost = st.floats(0, 1e9)
rate = st.floats(1e-6, 1e9)
words = st.text("abcdefgh ./-", min_size=1, max_size=20)
pools = st.builds(MemoryPool, st.none() | st.integers(1, 2**40), rate, st.integers(0, 2**40), st.none() | rate)


@st.composite
def profiles(draw: st.DrawFn) -> DeviceProfile:
    pairs = draw(st.lists(st.tuples(bits, bits), min_size=1, max_size=6, unique=True))
    shares = st.dictionaries(st.sampled_from(("conv", "linear", "default", "softmax")), st.floats(0.01, 1))
    return DeviceProfile(
        name="drawn",
        unit=draw(st.sampled_from(("cpu", "gpu", "npu", "mcu", "dsp"))),
        pairs={"default": tuple(pairs)},
        compute=tuple(Throughput(w, a, draw(rate), draw(shares)) for w, a in {*pairs, (32, 32)}),
        activation_pool=draw(pools),
        weight_store=draw(pools),
        overheads=draw(st.builds(Overheads, cost, cost, cost, cost, cost)),
        power=draw(st.builds(Power, st.dictionaries(st.just("8x8"), cost), cost, st.none() | cost, cost)),
        channel_multiple={"default": draw(st.integers(1, 1024)), "w4": draw(st.integers(1, 1024))},
        storage_bits={4: draw(st.sampled_from((4, 8)))},
        input_bits=pairs[0][1],
        title=draw(words),
        scale=draw(st.sampled_from(("float", "power-of-two"))),
        sparsity=draw(st.none() | st.builds(Sparsity, st.just("2:4"), st.floats(1, 4))),
        fallback=draw(st.builds(Fallback, st.frozensets(st.sampled_from(("softmax", "gelu"))), rate, cost)),
        figures={"/compute": draw(st.builds(Figure, words, st.sampled_from(("measured", "low"))))},
        error_p90=draw(st.none() | st.floats(0, 1)),
        table=draw(st.none() | st.builds(LatencyTable, st.just({"conv.int8": {"calls": 0.5}}))),
    )


@given(profiles())
def test_profile_when_sent_through_json_and_schema_then_comes_back_equal(device: DeviceProfile) -> None:
    record = json.loads(json.dumps(device.to_json()))
    assert checked_profile(record) == record
    assert DeviceProfile.from_json(checked_profile(record)) == device
