"""Bit gates as a joint network's quantizers: widths that gates switch on and off (see `worker.methods.bit_gates`)."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from worker.methods.bit_gates import WIDTHS, BitGatedQuantizer
from worker.methods.djpq import LearnedQuantizer


def chain(legal: Collection[int]) -> tuple[int, ...]:
    """Return the legal widths that gates choose among: from the narrowest of `WIDTHS` on, each twice the one before."""
    found: list[int] = []
    for width in WIDTHS:
        if width in legal and (not found or width == 2 * found[-1]):
            found.append(width)
    return tuple(found)


class GatedWidths(BitGatedQuantizer):
    """Begins with every gate on, at the widest width; the chances of its gates are what is trained."""

    def bits(self, by_top: bool = True) -> Tensor:
        """Return the expected width; the range has no part in it."""
        return super().bits()

    def plain(self) -> LearnedQuantizer:
        """Return a quantizer of the same range, fixed to the width that the gates choose."""
        found = LearnedQuantizer(self.log_top.detach().exp(), self.deploy_bits(), self.below)
        found.restrict(self.deploy_bits())
        return found


def plain(quantizer: LearnedQuantizer | GatedWidths | None) -> LearnedQuantizer | None:
    """Return a quantizer whose width can be fixed at any legal one."""
    return quantizer.plain() if isinstance(quantizer, GatedWidths) else quantizer
