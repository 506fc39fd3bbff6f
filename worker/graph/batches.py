"""Files exported for a fixed batch: making sure that they were read for any batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from worker.graph.errors import NetworkRefused
from worker.graph.extents import InputSpec, inputs_of

TOLERANCE = 1e-4


def check_batch(module: fx.GraphModule) -> None:
    """Raise NetworkRefused where two pictures together give something else than each alone.

    A file made for a fixed batch names it as a plain number among others, and a reader has to guess which one it is.
    """
    if not any(node.meta.get("fixed_batch") for node in module.graph.nodes):
        return
    generator = torch.Generator().manual_seed(0)
    pair = [_example(item, generator) for item in inputs_of(module)]
    alone = [_outputs(module, [item[row : row + 1] for item in pair]) for row in (0, 1)]
    together = _outputs(module, pair)
    if not all(_equal(both, torch.cat(parts)) for both, *parts in zip(together, *alone, strict=True)):
        raise NetworkRefused(
            "dynamic-shape-unsupported",
            "the file fixes its batch in a way that can't be told from other sizes; export it with a symbolic batch",
        )


def _example(item: InputSpec, generator: torch.Generator) -> Tensor:
    sizes = (2, *item.shape)
    if item.dtype.is_floating_point:
        return torch.randn(sizes, generator=generator)
    return torch.randint(0, 2, sizes, generator=generator).to(item.dtype)


def _outputs(module: fx.GraphModule, inputs: list[Tensor]) -> list[Tensor]:
    try:
        with torch.no_grad():
            found: Any = module(*inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise NetworkRefused(
            "dynamic-shape-unsupported", f"can't be run at other batches: {str(error)[:200]}"
        ) from error
    return list(found) if isinstance(found, tuple) else [found]


def _equal(both: Tensor, parts: Tensor) -> bool:
    if both.shape != parts.shape:
        return False
    both, parts = both.float(), parts.float()
    return bool(((both - parts).abs() <= TOLERANCE * parts.abs().max().clamp_min(1e-6)).all())
