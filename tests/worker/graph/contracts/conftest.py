"""Hundreds of tiny networks run once each: compiling a convolution kernel per shape would cost more than running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _plain_kernels() -> Iterator[None]:
    with torch.backends.mkldnn.flags(enabled=False):
        yield
