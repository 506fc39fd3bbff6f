"""Facts about this machine that a measured figure is worth nothing without."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import onnxruntime

_TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
_X86 = frozenset({"x86_64", "amd64"})
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})


def describe() -> dict[str, object]:
    """Return processor, integer-dot-product features, core count and runtime version as JSON."""
    info = _cpuinfo()
    return {
        "processor": info.get("model name", platform.machine()),
        "machine": platform.machine(),
        "features": [flag for flag in _TELLING_FLAGS if flag in info.get("flags", "").split()],
        "cores": os.cpu_count(),
        "onnxruntime": onnxruntime.__version__,
    }


def has_integer_dot_product(features: Collection[str]) -> bool:
    """Tell whether a processor of these features (`describe`) multiplies and adds bytes in one instruction."""
    return not _VNNI.isdisjoint(features)


def has_saturating_pairs(machine: Mapping[str, Any]) -> bool:
    """Tell whether a machine (`describe`) adds pairs of byte products in a saturating int16: x86 without VNNI."""
    is_x86 = str(machine.get("machine")).lower() in _X86
    return is_x86 and not has_integer_dot_product(machine.get("features") or ())


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entries of /proc/cpuinfo (nothing where there is no such file)."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
