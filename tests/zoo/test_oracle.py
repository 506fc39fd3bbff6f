"""Channel groups equal Torch-Pruning's, channel by channel, but for the differences explained."""

from __future__ import annotations

import pytest

from tests.zoo import ZOO
from tests.zoo.oracle import DIFFERENCES, differing

CNNS = [name for name, entry in ZOO.items() if entry.is_cnn]


@pytest.mark.parametrize("name", CNNS)
def test_groups_when_compared_with_torch_pruning_then_equal_or_explained(name: str) -> None:
    layers, _ = DIFFERENCES.get(name, (frozenset(), "equal"))
    assert differing(name) == layers
