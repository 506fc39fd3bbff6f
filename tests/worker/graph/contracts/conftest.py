"""Hundreds of tiny networks, each run a few times: compiling a kernel per shape would cost more than running it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _plain_kernels() -> Iterator[None]:
    before = torch.backends.mkldnn.enabled
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(before)
