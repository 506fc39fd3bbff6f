"""Which 8-bit layers an x86 processor without VNNI would compute wrongly.

On AVX2 and AVX-512 without VNNI, ONNX Runtime multiplies uint8 activations by int8 weights with `vpmaddubsw`, which
adds two neighbouring products in a *saturating* int16. A sum beyond 32,767 is silently cut: a full-range 8-bit layer
may come out wrong on one machine and right on the next. Weights of 7 bits or fewer (127 * 63 * 2 < 2^15 at 255) and
activations of 7 bits or fewer never get there; depthwise convolutions use another kernel. For devices of that kind a
layer that may saturate is exported with uint8 weights and zero point 128: same integers, an exact kernel, half as fast.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.device import DeviceProfile
from worker.hardware import host

INT16_MAX = 32767


def guards_pairs(device: DeviceProfile) -> bool:
    """Tell whether files for a device are kept from saturating: its profile says that it does, or this machine does.

    A file is run here before it is delivered, and what is delivered is what ran.
    """
    return device.saturating_pairs or host.has_saturating_pairs(host.describe())


def may_saturate(weights: NDArray[Any], largest_code: int, depthwise: bool = False) -> bool:
    """Tell whether two neighbouring products of a layer can leave int16.

    `weights` holds integers (out, in / groups, *kernel); `largest_code` is the largest activation code (2^bits - 1).
    Both orders in which the runtime lays out a filter are looked at (channels first, channels last), at any alignment.
    """
    if depthwise or weights.size == 0:
        return False
    wide = weights.astype(np.int64)
    channels_last = np.moveaxis(wide, 1, -1)
    return any(_worst_pair(rows) * largest_code > INT16_MAX for rows in (wide, channels_last))


def _worst_pair(rows: NDArray[np.int64]) -> int:
    """Return the largest |sum| of the same-signed parts of two neighbours along each flattened filter."""
    flat = rows.reshape(rows.shape[0], -1)
    worst = 0
    for signed in (np.maximum(flat, 0), np.maximum(-flat, 0)):
        pairs = signed[:, :-1] + signed[:, 1:] if flat.shape[1] > 1 else signed
        worst = max(worst, int(pairs.max()))
    return worst
