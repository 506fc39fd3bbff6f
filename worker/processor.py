"""Which processor trials run on. Results of different kinds are never mixed: they are kept under other keys, and a
search that was begun on one kind goes on there."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from worker.sandbox import Child, Limits

if TYPE_CHECKING:  # torch is imported in the child alone
    import torch

CPU = "cpu"
CUDA = Path("/dev/nvidiactl")
ASK_S = 120.0


@functools.cache
def here(limits: Limits) -> str:
    """Return what trials run on in this worker's children: "cpu", or like "cuda:0 NVIDIA L4".

    A child that has loaded the library is asked only where there might be such a device.
    """
    if not CUDA.exists():
        return CPU
    with Child(limits) as child:
        return str(child.call("processor", {}, ASK_S)["processor"])


def kind_of(processor: str) -> str:
    """Return a processor's kind: its name without the number it has in its machine."""
    return processor.partition(" ")[2] or processor.partition(":")[0]


def name_of(device: torch.device) -> str:
    """Return a device as `here` names it."""
    import torch

    if device.type == CPU:
        return CPU
    index = device.index or 0
    return f"{device.type}:{index} {torch.cuda.get_device_name(index)}"


def chosen(wanted: str | None) -> torch.device:
    """Return where a child runs trials that are `wanted` on some processor (None: on the best there is).

    Raises LookupError where there is none of its kind.
    """
    import torch

    from worker.search.evaluate import processor

    found = processor()
    if wanted is None or kind_of(wanted) == kind_of(name_of(found)):
        return found
    if wanted == CPU:
        return torch.device(CPU)
    raise LookupError(f"the search's trials run on {wanted}, but this worker has {name_of(found)}")
