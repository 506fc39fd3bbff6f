"""What is done to a search's best networks and would be too slow for every trial: each step kept only where it helps.

The steps, in order:
- "thorough": compress again from all calibration rows and `ROWS` times as many places in each layer;
- "redrawn-1", "redrawn-2": the same from other places (least squares and rounding hang on the sample they see);
- "bias": last, each output channel's mean over all places is moved to the float network's, layer by layer, on what the
  polished layers before it produce (empirical bias correction, Nagel et al. 2019, section 4.2).
Nothing is fitted on the rows that decide. Channels and bits stay, and so do all costs. A polished network is named by
its repair and the steps kept, "sequential+redrawn-1+bias", and made anew from that name: every step is seeded.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor, fx

from app.domain.space import Assignment
from worker.quant.compressor import Compressor
from worker.quant.network import CompressedNetwork
from worker.quant.rebias import layer_means, matched
from worker.quant.reference import FloatReference, Sampling
from worker.quant.steps import DRAWS

ROWS = 4
MEMORY = 512 << 20
"""What references to many rows may take together; beyond it one is held at a time."""


class Polisher:
    """Makes polished networks by name. `inputs`: all calibration rows, one tensor per network input."""

    def __init__(self, compressor: Compressor, folded: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        self._compressor, self._folded, self._inputs = compressor, folded, tuple(inputs)
        self._drawn: dict[int, Compressor] = {}

    def network(self, assignment: Assignment, base: CompressedNetwork, steps: Sequence[str]) -> CompressedNetwork:
        """Return a network after some steps; `base` is what they start from."""
        for step in steps:
            base = self._thorough(DRAWS[step]).compress(assignment) if step in DRAWS else self._bias_corrected(base)
        return base

    def _bytes(self, reference: FloatReference) -> int:
        """Return the memory that references take, once all of them are drawn."""
        parts = [part for item in reference.layers.values() for part in (item.stats.gram, item.outputs)]
        return len(DRAWS) * sum(part.numel() * part.element_size() for part in parts)

    def _bias_corrected(self, net: CompressedNetwork) -> CompressedNetwork:
        """Move each layer's mean outputs to the float network's, in execution order."""
        kept = {name: mean[self._compressor.slicer.columns(name, net.kept)[0]] for name, mean in self._means.items()}
        return matched(net, self._compressor.graph, kept, self._thorough(0).reference.inputs)

    @functools.cached_property
    def _means(self) -> dict[str, Tensor]:
        """Return each layer's mean output per channel in the float network."""
        reference = self._thorough(0).reference
        return layer_means(self._folded, reference.layers, reference.inputs)

    def _thorough(self, seed: int) -> Compressor:
        """Return a compressor that looks at many rows, drawn by a seed."""
        if seed not in self._drawn:
            own = self._compressor
            reference = FloatReference(self._folded, own.slicer.plan, self._inputs, sampling=Sampling(ROWS, seed))
            if self._bytes(reference) > MEMORY:
                self._drawn.clear()
            self._drawn[seed] = Compressor(own.slicer, own.graph, reference, own.device, own.fast_pictures)
        return self._drawn[seed]
