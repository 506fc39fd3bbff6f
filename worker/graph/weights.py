"""New weights for a known network: tensors by name that take the place of the file's own before its graph is read.

Names are those of the source file: initializers of an ONNX file, fully qualified names of a torch.export archive.
Replaced there, and not in the canonical graph, everything that reading derives from them follows: folded constants,
BatchNorm, weights that are split or transposed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from app.domain.zip_laws import Buffer
from worker.graph.errors import NetworkRefused
from worker.safetensors_laws import SafetensorsRefused, check_safetensors

MAX_LISTED = 20
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTER = "num_batches_tracked"  # counts training steps; inference never reads it
_SETTINGS = {"Resize": (1, 2), "Upsample": (1,), "Clip": (1, 2), "Pad": (2,)}
_WORDS = {
    "missing": "missing",
    "unexpected": "unexpected",
    "shape": "of another shape",
    "dtype": "of another kind of dtype",
    "changed": "with changed integers",
}
_ADVICE = (
    "The file must hold the network's state dict, whole: safetensors.torch.save_file(model.state_dict(), path). "
    "Exporters to ONNX fold BatchNorm and rename weights, and the state dict's names are lost with that; upload the "
    "network as torch.export .pt2, which keeps them"
)


@dataclass(frozen=True)
class Held:
    """The named tensors of a network's file.

    `required` names its weights, which new ones must replace; `places` says where a tensor is stored: names with one
    place are tied, and one of them is enough.
    """

    tensors: Mapping[str, Tensor]
    required: Collection[str]
    places: Mapping[str, str] = field(default_factory=dict)


class Fault(NamedTuple):
    """What is wrong with a name: missing, unexpected, shape, dtype or changed."""

    code: str
    name: str
    detail: str


def read_weights(data: Buffer) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises NetworkRefused invalid-safetensors, header-too-large, too-many-tensors, duplicate-tensor or trailing-data.
    """
    try:
        check_safetensors(data)
        return dict(load(data[:]))
    except SafetensorsRefused as refusal:
        raise NetworkRefused(refusal.slug, refusal.detail) from refusal
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise NetworkRefused("invalid-safetensors", f"tensors that torch can't hold: {str(error)[:200]}") from error


def replaced(held: Held, new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's tensors with the new weights, float32, in the place of its own.

    What is no weight may be absent: integers, and constants of the graph. Integers that the network knows must be what
    they were, others are ignored. Raises NetworkRefused weights-mismatch, which lists up to 20 names.
    """
    given = _with_tied(held, new)
    faults = [*_absent(held, given), *_unexpected(held, new), *_unlike(held, given)]
    if faults:
        raise _mismatch(faults)
    weights = {name: given[name].float() for name in held.tensors if name in given and _is_float(held.tensors[name])}
    return {**held.tensors, **weights}


def onnx_weights(nodes: Iterable[Any], tensors: Mapping[str, Tensor]) -> set[str]:
    """Return the names of an ONNX graph's weights among its initializers.

    They are the floating ones but for scalars and tensors that only set an operator, such as the scales of a Resize.
    """
    used: set[str] = set()
    for node in nodes:
        settings = _SETTINGS.get(node.op_type, ())
        used.update(name for index, name in enumerate(node.input) if index not in settings)
    return {name for name, tensor in tensors.items() if name in used and tensor.dim() > 0 and _is_float(tensor)}


def pt2_weights(tensors: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the weights in an archive's stored state dict: the floating ones."""
    return {name for name, tensor in tensors.items() if _is_float(tensor)}


def _is_float(tensor: Tensor) -> bool:
    return tensor.dtype in FLOATS


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == COUNTER


def _with_tied(held: Held, new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the new tensors, those that are tied to one of them under their own names too."""
    tied: dict[str, Tensor] = {held.places[name]: tensor for name, tensor in new.items() if name in held.places}
    lent = {name: tied[place] for name, place in held.places.items() if place in tied}
    return {**lent, **new}


def _absent(held: Held, given: Mapping[str, Tensor]) -> Iterator[Fault]:
    for name in sorted(set(held.required) - set(given)):
        yield Fault("missing", name, f"missing; the network's has shape {list(held.tensors[name].shape)}")


def _unexpected(held: Held, new: Mapping[str, Tensor]) -> Iterator[Fault]:
    for name in sorted(set(new) - set(held.tensors)):
        if _is_float(new[name]) and not _is_counter(name):
            yield Fault("unexpected", name, "the network has no tensor of this name")


def _unlike(held: Held, given: Mapping[str, Tensor]) -> Iterator[Fault]:
    for name in sorted(set(given) & set(held.tensors)):
        old, tensor = held.tensors[name], given[name]
        if _is_counter(name):
            continue
        if tensor.shape != old.shape:
            yield Fault("shape", name, f"shape {list(tensor.shape)}; the network's has {list(old.shape)}")
        elif _is_float(old) != _is_float(tensor):
            yield Fault("dtype", name, f"dtype {tensor.dtype}; the network's has {old.dtype}".replace("torch.", ""))
        elif not _is_float(old) and not torch.equal(tensor.to(old.dtype), old):
            yield Fault("changed", name, "an integer constant of the network with other values")


def _mismatch(faults: Collection[Fault]) -> NetworkRefused:
    kinds: dict[str, list[Fault]] = {}
    for fault in faults:
        kinds.setdefault(fault.code, []).append(fault)
    counts = ", ".join(
        f"{len(found)} {_WORDS[code]} (such as {found[0].name[:100]!r})" for code, found in kinds.items()
    )
    detail = f"the weights don't fit the network: {counts}. {_ADVICE}"
    errors = [{"pointer": f"/weights/{name}", "code": code, "detail": said} for code, name, said in _told(kinds)]
    return NetworkRefused("weights-mismatch", detail, errors)


def _told(kinds: Mapping[str, Sequence[Fault]]) -> list[Fault]:
    """Return the faults to list: as many of each kind as fit, so that many of one don't hide another."""
    in_turn = [fault for turn in zip_longest(*kinds.values()) for fault in turn if fault is not None]
    return sorted(in_turn[:MAX_LISTED], key=lambda fault: list(kinds).index(fault.code))
