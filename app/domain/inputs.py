"""Which array of a dataset goes into which input of a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.domain.graph import Port

ONLY = "x"
"""The name of a dataset's array where the network has one input."""


def arrays_for(ports: Sequence[Port], names: Iterable[str]) -> dict[str, str]:
    """Return the array of each input, by the input's name: the one called like it, in the graph or in the user's file.

    `x` (or the only array there is) goes with a single input whatever that is called. Raises ValueError naming the
    inputs without an array.
    """
    there = list(names)
    found = {port.name: next((name for name in (port.label, port.name) if name in there), "") for port in ports}
    if len(ports) == 1 and not all(found.values()):
        found[ports[0].name] = ONLY if ONLY in there else (there[0] if len(there) == 1 else "")
    missing = [port.label or port.name for port in ports if not found[port.name]]
    if missing:
        raise ValueError(f"no array for the network's {_listed(missing)}; found {_listed(sorted(there))}")
    return found


def mismatches(ports: Sequence[Port], arrays: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return (array, what is wrong) for arrays whose record does not fit the input they go with.

    A record holds `shape` (one normalised row), `stored` (one row as it lies in the file) and `dtype` (numpy's name).
    """
    found = []
    for port, name in ((port, arrays_for(ports, arrays)[port.name]) for port in ports):
        record = arrays[name]
        shape = tuple(record["stored" if port.is_integer else "shape"])
        if shape != port.shape:
            found.append((name, f"one row of {name!r} has shape {shape}, the network takes {port.shape}"))
        elif port.is_integer and not str(record["dtype"]).startswith(("int", "uint")):
            found.append((name, f"{name!r} holds {record['dtype']}, the network takes ids ({port.dtype})"))
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"
