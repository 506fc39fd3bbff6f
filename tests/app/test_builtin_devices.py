"""The built-in profiles: each figure has a source, each record is legal, each device can be searched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.api.device_schema import checked_profile
from app.domain.cost import count
from app.domain.device import OPERATIONS, DeviceProfile, figure_of
from app.domain.space import build_space, cheapest, widest
from app.main import builtin_profiles
from tests.app.domain.drawings import skip, two_convs
from worker.graph.ops import OPS

DOC = Path(__file__).resolve().parents[2] / "docs" / "devices.md"
RECORDS = {record["name"]: record for record in builtin_profiles()}
EXPECTED = {
    "apple-a17-ane", "coral-edgetpu", "epyc-zen4", "esp32s3", "ethos-u55-128", "ethos-u65-256", "generic-npu",
    "hailo-8", "imx500", "intel-n100", "jetson-orin-nano", "nvidia-l4", "nvidia-t4", "onnxruntime-cpu", "rpi5-cpu",
    "snapdragon-8gen3-htp", "stm32h7", "stm32n6",
}  # fmt: skip
each = pytest.mark.parametrize("name", sorted(RECORDS))


def numbers(value: Any, pointer: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, f"{pointer}/{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from numbers(item, f"{pointer}/{index}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield pointer, value


def test_builtins_when_listed_then_are_these_eighteen() -> None:
    assert set(RECORDS) == EXPECTED


@each
def test_builtin_when_read_then_every_number_has_a_source_and_a_confidence(name: str) -> None:
    record = RECORDS[name]
    shown = {key: record[key] for key in ("compute", "memory", "overheads", "power", "fallback")}
    shown["rules"] = {"channel_multiple": record["rules"]["channel_multiple"]}
    found = dict(numbers(shown))
    assert len(found) >= 15
    figures = record["evidence"]["figures"]
    assert [pointer for pointer in found if figure_of(figures, pointer) is None] == []
    assert record["evidence"]["sources"]


@each
def test_builtin_when_a_source_is_memory_or_an_estimate_then_the_confidence_is_not_high(name: str) -> None:
    for pointer, figure in RECORDS[name]["evidence"]["figures"].items():
        if "from memory" in figure["source"] or "estimate" in figure["source"]:
            assert figure["confidence"] in ("medium", "low"), pointer


@each
def test_builtin_when_read_as_a_profile_then_says_the_same_again(name: str) -> None:
    device = DeviceProfile.from_json(RECORDS[name])
    assert checked_profile(device.to_json()) == {**RECORDS[name], "fallback": device.to_json()["fallback"]}


@each
def test_builtin_when_a_network_is_searched_then_fewer_channels_cost_less(name: str) -> None:
    device = DeviceProfile.from_json(RECORDS[name])
    for graph in (two_convs(), skip()):
        space = build_space(graph, device)
        assert all(pair in device.pairs_for("conv") for pair in space.pairs[graph.layers[0].name])
        full, least = widest(graph, 8), cheapest(graph, space)
        before, narrow = count(graph, full, device), count(graph, replace(full, keep=least.keep), device)
        assert 0 < count(graph, least, device).bops <= narrow.bops < before.bops
        assert 0 < narrow.latency_ms <= before.latency_ms
        assert before.macs == sum(layer.positions * _weights(layer.weight_shape) for layer in graph.layers)


@each
def test_builtin_when_documented_then_the_table_has_its_row(name: str) -> None:
    assert f"| `{name}` |" in DOC.read_text()


def test_operations_when_compared_then_are_the_op_tables() -> None:
    assert {op.name for op in OPS.values()} == OPERATIONS


def _weights(shape: tuple[int, ...]) -> int:
    product = 1
    for extent in shape:
        product *= extent
    return product
