"""One quantized layer, as it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from app.domain.space import FLOAT_BITS


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer as it is stored.

    `weight_int` [out, in / groups, *kernel] holds integers of `bits` (int8 up to 8 bits, int16 above), `weight_scale`
    [out] or [1] float32, `bias` [out] float32. A float layer (32 bits) has no integers but `weight_float`.
    """

    name: str
    bits: int
    bias: np.ndarray[Any, np.dtype[np.float32]]
    weight_int: np.ndarray[Any, Any] | None = None
    weight_scale: np.ndarray[Any, np.dtype[np.float32]] | None = None
    weight_float: np.ndarray[Any, np.dtype[np.float32]] | None = None


def is_float(bits: int) -> bool:
    """Tell whether a bit-width means "left float"."""
    return bits >= FLOAT_BITS
