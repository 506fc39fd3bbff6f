"""What activations look like: a bounded sample of each quantizer site's values, and grids fitted to it."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.graph.sites import Site
from worker.quant.grids import FREE, ActivationGrid, GridRules, activation_grid

MAX_SAMPLES = 1 << 15


class SiteObserver:
    """Keeps extremes exactly and a seeded sample of at most 2^15 values per batch share; memory does not grow."""

    def __init__(self, site: Site, batches: int, seed: int = 0) -> None:
        self.site = site
        self._share = max(1024, MAX_SAMPLES // max(1, batches))
        self._generator = torch.Generator().manual_seed(seed)
        self._parts: list[Tensor] = []
        self._low, self._high = 0.0, 0.0
        self._grids: dict[tuple[int, GridRules], ActivationGrid] = {}

    def observe(self, value: Tensor) -> None:
        """Take in one batch of values of any shape."""
        flat = value.reshape(-1)
        self._low, self._high = min(self._low, float(flat.min())), max(self._high, float(flat.max()))
        if flat.numel() > self._share:
            flat = flat[torch.randint(flat.numel(), (self._share,), generator=self._generator)]
        self._parts.append(flat.float().clone())

    def grid(self, bits: int, rules: GridRules = FREE) -> ActivationGrid:
        """Return the fitted grid for a bit-width (computed once)."""
        key = bits, rules
        if key not in self._grids:
            samples = torch.cat([*self._parts, torch.tensor([self._low, self._high])])
            self._grids[key] = activation_grid(samples, bits, self.site.unsigned, rules)
        return self._grids[key]
