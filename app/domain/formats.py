"""Telling file formats apart by content: one list of what is read and what is refused."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from typing import Literal

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

_MIN_BYTES = 16
_ONNX_TAGS = b"\x08\x12\x1a\x22\x28\x32\x3a\x42\x72"  # the first byte of a serialised ModelProto: one of its fields
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_UNSUPPORTED = {
    b"\x89HDF": "HDF5 (Keras)",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "GGUF",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}


class FormatRefused(Exception):
    """Content that is not read; `slug` names the problem."""

    def __init__(self, slug: str, detail: str) -> None:
        super().__init__(f"{slug}: {detail}")
        self.slug, self.detail = slug, detail


def sniff(head: bytes, size: int, kind: Kind, entries: Callable[[], Sequence[str]]) -> str:
    """Return onnx or pt2 for a network, npz or safetensors for a dataset, safetensors for weights.

    Of a network and a dataset the other's zip format may come back.

    `head` is the file's first 512 bytes, `size` its length in bytes; `entries` lists a zip's names and is called for a
    zip only. Raises FormatRefused: unrecognised-format, unsafe-format, unsupported-format or invalid-archive.
    """
    if size < _MIN_BYTES:
        raise FormatRefused("unrecognised-format", f"{size} bytes are no {kind}")
    if kind != "network" and _is_safetensors(head, size):
        return "safetensors"
    if head[:2] in _PICKLES or (kind == "network" and head[:1] in (b"(", b"c") and b"\n" in head[:64]):
        raise FormatRefused("unsafe-format", f"a pickle stream. {_hint(kind)}")
    for start, name in _UNSUPPORTED.items():
        if head.startswith(start):
            raise FormatRefused("unsupported-format", f"the file is {name}. {_hint(kind)}")
    if head.startswith(b"PK"):
        return _zip_format(entries, kind)
    if head[257:262] == b"ustar":
        raise FormatRefused("unsafe-format", f"a tar archive, as old checkpoints are. {_hint(kind)}")
    if kind == "network" and head[0] in _ONNX_TAGS:
        return "onnx"
    hint = "" if kind == "dataset" else f" {_hint(kind)}"
    raise FormatRefused("unrecognised-format", f"the content is no {kind}.{hint}")


def _is_safetensors(head: bytes, size: int) -> bool:
    """Tell by the 8-byte header length and the JSON object behind it; the length may begin like a pickle's bytes."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _zip_format(entries: Callable[[], Sequence[str]], kind: Kind) -> str:
    try:
        names = entries()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise FormatRefused("invalid-archive", f"a broken zip archive: {error}") from error
    if kind != "weights" and any(name.endswith("models/model.json") for name in names):
        return "pt2"
    if any(name.endswith(("data.pkl", "constants.pkl")) or "/code/" in name for name in names):
        detail = f"a pickled checkpoint or TorchScript archive. {_hint(kind)}"
        raise FormatRefused("unsafe-format", detail)
    if kind == "dataset" and any(name.endswith(".npy") for name in names):
        return "npz"
    raise FormatRefused("unrecognised-format", f"a zip archive that holds no {kind}. {_hint(kind)}")


def _hint(kind: Kind) -> str:
    return WEIGHTS_HINT if kind == "weights" else CONVERSION_HINT
