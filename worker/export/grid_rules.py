"""Do a network's grids suit the device: zero points where it has none, scales that are powers of two."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from app.domain.device import DeviceProfile
from worker.quant.grids import GridRules
from worker.quant.network import CompressedNetwork


def rule_violations(network: CompressedNetwork, device: DeviceProfile) -> list[str]:
    """Return what a device's rules forbid, one text each."""
    rules = GridRules.of(device)
    found = list(_off_centre(network)) if rules.symmetric else []
    return [*found, *_no_powers(network)] if rules.powers else found


def _off_centre(network: CompressedNetwork) -> Iterator[str]:
    for site, grid in network.grids.items():
        if grid.zero_point != 2 ** (grid.bits - 1):
            yield f"{site}: zero point {grid.zero_point} of {grid.bits} bits, and the device has symmetric activations"


def _no_powers(network: CompressedNetwork) -> Iterator[str]:
    scales = {site: np.array([grid.scale]) for site, grid in network.grids.items()}
    scales |= {name: layer.weight_scale for name, layer in network.layers.items() if layer.weight_scale is not None}
    for name, values in scales.items():
        powers = np.log2(values.astype(np.float64))
        if not np.array_equal(powers, np.rint(powers)):
            yield f"{name}: scales that are no powers of two, as the device asks"
