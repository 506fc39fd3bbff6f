"""Telling file formats apart by content: one list of what is read and what is refused."""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Literal

from app.domain.zip_laws import Entry, ZipRefused, check_listed, is_closed

Kind = Literal["network", "dataset", "weights"]

CONVERSION_HINT = (
    "Only formats that cannot execute code are read. Export the network first:\n"
    "    program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim('batch')},))\n"
    "    torch.export.save(program, 'model.pt2')    # or: torch.onnx.export(model, (example,), 'model.onnx')"
)
WEIGHTS_HINT = (
    "New weights are one safetensors file: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)
HEAD_BYTES = 512
"""How many leading bytes `sniff` looks at."""
TAIL_BYTES = 22
"""How many closing bytes `sniff` looks at: a zip's end record."""

_MIN_BYTES = 16
_ONNX_TAGS = b"\x08\x12\x1a\x22\x28\x32\x3a\x42\x72"  # the first byte of a serialised ModelProto: one of its fields
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_OLD_PICKLES = b"(]}cINFLSVGKMJUX"  # the first byte of a pickle of protocol 0 or 1: a container, a global, a value
_OPCODES = 3  # as many in a row make a pickle: text and numbers fail before
_UNSUPPORTED = {
    b"\x89HDF": "HDF5 (Keras)",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "GGUF",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"\x04\x22\x4d\x18": "lz4",
    **dict.fromkeys((b"x\x01", b"x\x5e", b"x\x9c", b"x\xda"), "zlib (as joblib writes)"),
}


class FormatRefused(Exception):
    """Content that is not read; `slug` names the problem."""

    def __init__(self, slug: str, detail: str) -> None:
        super().__init__(f"{slug}: {detail}")
        self.slug, self.detail = slug, detail


def sniff(head: bytes, size: int, kind: Kind, entries: Callable[[], Sequence[Entry]], tail: bytes = b"") -> str:
    """Return onnx or pt2 for a network, npz or safetensors for a dataset, safetensors for weights.

    Of a network and a dataset the other's zip format may come back. `head` is the file's first 512 bytes, `tail` its
    last 22, `size` its length in bytes; `entries` lists a zip's and is called for a zip only. Raises FormatRefused:
    unrecognised-format, unsafe-format, unsupported-format, trailing-data, or what a zip breaks (invalid-archive,
    compressed-entry, overlapping-entries).
    """
    if size < _MIN_BYTES:
        raise FormatRefused("unrecognised-format", f"{size} bytes are no {kind}")
    if _is_safetensors(head, size):
        return _safetensors(kind, is_closed(tail))
    if head.startswith(b"PK"):
        return _zip_format(entries, kind)
    _check_refused(head, kind, is_closed(tail))
    if kind == "network" and head[0] in _ONNX_TAGS:
        if is_closed(tail):
            raise FormatRefused("trailing-data", "a zip archive is appended to the file")
        return "onnx"
    if kind != "network" and head[8:9] == b"{":
        return "safetensors"  # with a header longer than the file: its own laws will say so
    if is_closed(tail):
        raise FormatRefused("invalid-archive", "something lies in front of the zip archive")
    hint = "" if kind == "dataset" else f" {_hint(kind)}"
    raise FormatRefused("unrecognised-format", f"the content is no {kind}.{hint}")


def _safetensors(kind: Kind, closed: bool) -> str:
    if kind != "network":
        return "safetensors"
    if closed:
        raise FormatRefused("trailing-data", "a safetensors file with a zip archive behind it")
    said = "a safetensors file: weights without a graph, which become a new version of a network that is known"
    raise FormatRefused("unrecognised-format", f"{said}. {CONVERSION_HINT}")


def _check_refused(head: bytes, kind: Kind, closed: bool) -> None:
    """Raise FormatRefused for the formats that are known and never read."""
    for start, name in _UNSUPPORTED.items():
        if head.startswith(start):
            raise FormatRefused("unsupported-format", f"the file is {name}. {_hint(kind)}")
    if head[257:262] == b"ustar":
        raise FormatRefused("unsafe-format", f"a tar archive, as old checkpoints are. {_hint(kind)}")
    if head[:2] in _PICKLES or _is_old_pickle(head):
        if closed:
            raise FormatRefused("trailing-data", f"a pickle stream with a zip archive behind it. {_hint(kind)}")
        raise FormatRefused("unsafe-format", f"a pickle stream. {_hint(kind)}")


def _is_old_pickle(head: bytes) -> bool:
    """Tell a pickle of protocol 0 or 1, which has no mark of its own, by the opcodes it begins with.

    Only their names and arguments are looked at; nothing is loaded.
    """
    if head[0] not in _OLD_PICKLES:
        return False
    seen: list[str] = []
    try:
        seen.extend(opcode.name for opcode, _, _ in islice(pickletools.genops(head), _OPCODES))
    except ValueError:  # no opcode, or a broken argument
        return False
    return len(seen) == _OPCODES or seen[-1:] == ["STOP"]


def _is_safetensors(head: bytes, size: int) -> bool:
    """Tell by the 8-byte header length and the JSON object behind it; the length may begin like a pickle's bytes."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _zip_format(entries: Callable[[], Sequence[Entry]], kind: Kind) -> str:
    try:
        found = entries()
        names = [entry.name for entry in found]
        known = _known_zip(names, kind)
        if known is None:
            check_listed(found if kind != "dataset" else ())
    except ZipRefused as refusal:
        raise FormatRefused(refusal.slug, refusal.detail) from refusal
    if known is None:
        raise FormatRefused("unrecognised-format", f"a zip archive that holds no {kind}. {_hint(kind)}")
    return known


def _known_zip(names: Sequence[str], kind: Kind) -> str | None:
    """Return pt2 or npz by the names of a zip's entries, or None; raise FormatRefused for pickled ones."""
    if kind != "weights" and any(name.endswith("models/model.json") for name in names):
        return "pt2"
    if any(name.endswith(("data.pkl", "constants.pkl")) or "/code/" in name for name in names):
        raise FormatRefused("unsafe-format", f"a pickled checkpoint or TorchScript archive. {_hint(kind)}")
    if any(name.endswith("serialized_exported_program.json") for name in names):
        said = "an archive of an older torch.export, whose weights are a pickle; save it with a newer one"
        raise FormatRefused("unsafe-format", f"{said}. {_hint(kind)}")
    if any(name.endswith("model.weights.h5") for name in names):
        raise FormatRefused("unsafe-format", f"a Keras archive, whose layers may hold code. {_hint(kind)}")
    return "npz" if kind == "dataset" and any(name.endswith(".npy") for name in names) else None


def _hint(kind: Kind) -> str:
    return WEIGHTS_HINT if kind == "weights" else CONVERSION_HINT
