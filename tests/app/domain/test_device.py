"""Device profiles."""

from __future__ import annotations

import json

import pytest

from app.domain.device import DeviceProfile, Throughput
from tests.app.domain.drawings import profile


def test_profile_when_sent_through_json_then_comes_back_equal() -> None:
    device = profile(storage_bits={2: 4}, channel_multiple={"default": 8, "w4": 16})
    assert DeviceProfile.from_json(json.loads(json.dumps(device.to_json()))) == device


@pytest.mark.parametrize(
    ("asked", "expected"), [((8, 8), (8, 8)), ((4, 8), (4, 8)), ((2, 4), (4, 8)), ((32, 32), (8, 8)), ((8, 4), (8, 8))]
)
def test_throughput_when_asked_then_the_narrowest_that_fits(asked: tuple[int, int], expected: tuple[int, int]) -> None:
    found = profile().throughput(*asked)
    assert (found.weight_bits, found.activation_bits) == expected


def test_rate_when_the_kind_is_not_listed_then_the_default_efficiency() -> None:
    entry = Throughput(8, 8, 2.0, {"conv": 0.75, "default": 0.25})
    assert entry.rate("conv") == 1.5e9
    assert entry.rate("linear") == 0.5e9
    assert Throughput(8, 8, 2.0).rate("conv") == 1e9


def test_rules_when_looked_up_then_per_kind_and_per_width_with_defaults() -> None:
    device = profile(pairs={"default": ((8, 8),), "linear": ((4, 8),)}, channel_multiple={"default": 8, "w4": 16})
    assert device.pairs_for("linear") == ((4, 8),)
    assert device.pairs_for("conv") == ((8, 8),)
    assert device.channel_multiple_for(4) == 16
    assert device.channel_multiple_for(2) == 8
    assert device.activation_bits == (8,)
    assert device.stored_bits(3) == 3
