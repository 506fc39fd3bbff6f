"""Which ONNX opset the exported files declare, and what each can hold."""

from __future__ import annotations

from collections.abc import Iterable

from app.domain.space import FLOAT_BITS, Assignment, SearchSpace

LOWEST = 13
"""The first with a scale per output channel (DequantizeLinear-13)."""
DEFAULT = 21
"""The first that quantizes to 16 bits and stores 4 (QuantizeLinear-21, INT4)."""
BYTE = 8


class OpsetTooLow(ValueError):
    """An opset that can't hold what is to be written; `lowest` is the first that can."""

    def __init__(self, opset: int, lowest: int, why: str) -> None:
        super().__init__(f"opset {opset} can't hold {why}; the lowest that can is {lowest}")
        self.opset, self.lowest = opset, lowest


def lowest_opset(widths: Iterable[int]) -> int:
    """Return the lowest opset that holds weights and activations of these bit-widths (32: left float)."""
    return DEFAULT if any(BYTE < bits < FLOAT_BITS for bits in widths) else LOWEST


def check_opset(opset: int, widths: Iterable[int]) -> None:
    """Raise OpsetTooLow where a file of this opset can't hold these bit-widths."""
    found = set(widths)
    if opset < (lowest := lowest_opset(found)):
        wide = sorted(bits for bits in found if BYTE < bits < FLOAT_BITS)
        raise OpsetTooLow(opset, lowest, f"{', '.join(map(str, wide))}-bit numbers")


def widths_of(chosen: Assignment | SearchSpace) -> set[int]:
    """Return every bit-width of an assignment, or that a space leaves open."""
    found: set[int] = set()
    for item in (*chosen.weight_bits.values(), *chosen.activation_bits.values()):
        found.update((item,) if isinstance(item, int) else item)
    return found
