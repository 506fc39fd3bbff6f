"""Observers: bounded memory, the same grid for the same values."""

from __future__ import annotations

import torch

from worker.graph.sites import Site
from worker.quant.observers import MAX_SAMPLES, SiteObserver

SITE = Site("relu", "conv", "hidden", True)


def values(count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0)).relu()


def test_observer_when_more_values_than_its_share_arrive_then_keeps_a_bounded_sample() -> None:
    observer = SiteObserver(SITE, batches=4)
    for part in values(400_000).split(100_000):
        observer.observe(part)
    assert sum(part.numel() for part in observer._parts) <= MAX_SAMPLES


def test_observer_when_asked_twice_then_the_grid_is_the_same_object() -> None:
    observer = SiteObserver(SITE, batches=1)
    observer.observe(values(1000))
    assert observer.grid(4) is observer.grid(4)


def test_observer_when_fed_the_same_values_then_grids_are_equal() -> None:
    first, second = SiteObserver(SITE, 1), SiteObserver(SITE, 1)
    for observer in (first, second):
        observer.observe(values(100_000))
    assert [first.grid(bits) for bits in (2, 4, 8)] == [second.grid(bits) for bits in (2, 4, 8)]


def test_observer_when_few_bits_then_outliers_are_clipped() -> None:
    observer = SiteObserver(SITE, 1)
    observer.observe(torch.cat([values(20_000), torch.tensor([12.0])]))
    eight, three = observer.grid(8), observer.grid(3)
    assert three.scale * three.levels < 6 < eight.scale * eight.levels


def test_observer_when_the_site_is_unsigned_then_zero_point_is_zero() -> None:
    observer = SiteObserver(SITE, 1)
    observer.observe(values(5000))
    assert [observer.grid(bits).zero_point for bits in (2, 3, 4, 8)] == [0, 0, 0, 0]
