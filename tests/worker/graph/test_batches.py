"""Networks exported for a fixed batch: read for any batch, or refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import fx

from tests.worker.graph.models import constants, node, proto
from tests.zoo import ZOO
from tests.zoo.sources import Source, exported
from worker.graph.batches import check_batch
from worker.graph.build import Builder
from worker.graph.errors import NetworkRefused
from worker.graph.leaves import Reshape
from worker.graph.read import read_network


def mixing(batch: int | None) -> fx.GraphModule:
    """Return a network that puts channels of one picture into another."""
    builder = Builder()
    x = builder.input("x", (2, 4), batch)
    turned = builder.call(torch.permute, x, name="turned", dims=(1, 0, 2))
    module = builder.module("back", Reshape((-1, 2, 4)), turned)
    builder.output(module)
    return builder.finish()


def test_check_when_a_fixed_batch_was_mistaken_then_refused() -> None:
    with pytest.raises(NetworkRefused) as refusal:
        check_batch(mixing(batch=1))
    assert refusal.value.slug == "dynamic-shape-unsupported"


@pytest.mark.parametrize("name", ["text_encoder", "shufflenet_v2", "two_in_two_out", "gru_tagger"])
def test_check_when_a_fixed_batch_was_found_then_passes(name: str) -> None:
    check_batch(read_network(exported(name, Source("pt2", batch="fixed"))))


def test_reshape_when_the_batch_lies_between_then_followed_through_the_merged_dimension() -> None:
    data = proto(
        [
            node("Transpose", ["x"], ["t"], perm=[1, 0, 2, 3]),  # [4, batch, 8, 8]
            node("Reshape", ["t", "merged"], ["m"]),
            node("Relu", ["m"], ["r"]),
            node("Reshape", ["r", "apart"], ["a"]),
            node("Transpose", ["a"], ["z"], perm=[1, 0, 2, 3]),
        ],
        {**constants(), "merged": np.array([12, 64]), "apart": np.array([4, 3, 8, 8])},
        batch=3,
    )
    module = read_network(data.SerializeToString())
    x = torch.randn(7, 4, 8, 8)
    assert torch.equal(module(x), torch.relu(x))


def test_zoo_when_exported_with_a_fixed_batch_then_every_archive_passes() -> None:
    assert {name for name in ZOO if not _passes(name)} == set()


def _passes(name: str) -> bool:
    try:
        check_batch(read_network(exported(name, Source("pt2", batch="fixed"))))
    except NetworkRefused:
        return False
    return True


def test_check_when_the_network_is_too_large_to_be_run_then_refused() -> None:
    """It would take 19 GiB to try."""
    builder = Builder()
    x = builder.input("x", (3, 1500, 1500), batch=1)
    for step in range(5):
        x = builder.call(torch.cat, [x, x], name=f"twice_{step}", dim=1)
    builder.output(x)
    module = builder.finish()
    with pytest.raises(NetworkRefused, match="above 33554432 the batch must be symbolic"):
        check_batch(module)
