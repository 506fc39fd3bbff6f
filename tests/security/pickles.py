"""Formats that can execute code, with a payload that touches a file: it must never be there."""

from __future__ import annotations

import atexit
import bz2
import gzip
import io
import lzma
import pickle
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

Made = Callable[[], bytes]


@cache
def marker() -> Path:
    """Return the file that every payload would write."""
    folder = Path(tempfile.mkdtemp(prefix="tightfit-marker-"))
    atexit.register(shutil.rmtree, folder, True)
    return folder / "executed"


class Payload:
    """Touches the marker when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (marker(),)


def evil_pickle(protocol: int) -> bytes:
    """Return a payload pickled in a list."""
    return pickle.dumps([Payload(), {"weight": 1.0}], protocol)


def zipped(members: Mapping[str, bytes]) -> bytes:
    """Return a zip of stored members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def checkpoint(new: bool = True) -> bytes:
    """Return what torch.save writes: a zip, or the bare pickles of before."""
    buffer = io.BytesIO()
    torch.save({"model": Payload(), "w": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def torchscript() -> bytes:
    """Return an archive laid out as TorchScript is."""
    code = b"def forward(self, x):\n  return ops.prim.os_system(x)\n"
    return zipped({"m/code/__torch__.py": code, "m/constants.pkl": evil_pickle(2), "m/data.pkl": evil_pickle(2)})


def tar(format: int) -> bytes:
    """Return a tar as torch.save wrote it before 0.1.10."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            info = tarfile.TarInfo(name)
            info.size = len(evil_pickle(2))
            archive.addfile(info, io.BytesIO(evil_pickle(2)))
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    """Return a .npy file, of objects where the array has some."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    """Return an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def objects() -> Any:
    """Return an array of payloads."""
    return np.array([Payload(), Payload()], object)


PICKLES: dict[str, Made] = {f"pickle, protocol {n}": (lambda n=n: evil_pickle(n)) for n in range(6)}
"""Row 32, under any name and for any kind of upload: `unsafe-format`."""

CHECKPOINTS: dict[str, Made] = {
    "torch.save": checkpoint,
    "torch.save, old": lambda: checkpoint(new=False),
    "TorchScript": torchscript,
    "tar, GNU": lambda: tar(tarfile.GNU_FORMAT),
    "tar, ustar": lambda: tar(tarfile.USTAR_FORMAT),
    "tar, pax": lambda: tar(tarfile.PAX_FORMAT),
    "TorchScript without pickles": lambda: zipped({"m/code/__torch__.py": b"", "m/version": b"3"}),
    "torch.export of torch 2.1": lambda: zipped(
        {"serialized_exported_program.json": b"{}", "serialized_state_dict.pt": checkpoint(), "version": b"8.2"}
    ),
}
"""Row 33 (and the last of 35): `unsafe-format`."""

FOREIGN: dict[str, tuple[Made, str]] = {
    "Keras archive": (
        lambda: zipped(
            {
                "metadata.json": b"{}",
                "config.json": b'{"class_name": "Lambda", "config": {"function": ["payload"]}}',
                "model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(64),
            }
        ),
        "unsafe-format",
    ),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(4096), "unsupported-format"),
    "joblib": (lambda: evil_pickle(4), "unsafe-format"),
    **{
        f"joblib, zlib {level}": (lambda level=level: zlib.compress(evil_pickle(4), level), "unsupported-format")
        for level in (1, 5, 6, 9)
    },
    "joblib, gzip": (lambda: gzip.compress(evil_pickle(4)), "unsupported-format"),
    "joblib, bzip2": (lambda: bz2.compress(evil_pickle(4)), "unsupported-format"),
    "joblib, xz": (lambda: lzma.compress(evil_pickle(4)), "unsupported-format"),
    "zstandard": (lambda: b"\x28\xb5\x2f\xfd" + bytes(64), "unsupported-format"),
    "npy of objects": (lambda: npy(objects()), "unsupported-format"),
    "npy of numbers": (lambda: npy(np.zeros((4, 3, 2, 2))), "unsupported-format"),
    "GGUF": (lambda: b"GGUF\x03\x00\x00\x00" + bytes(64), "unsupported-format"),
}
"""Row 50."""

NOISE: dict[str, Made] = {
    "empty": lambda: b"",
    "three bytes": lambda: b"abc",
    "fifteen bytes": lambda: b"\x08" * 15,
    "zeros": lambda: bytes(4096),
    "text": lambda: b"Lorem ipsum dolor sit amet, consectetur adipiscing elit.\n" * 20,
    **{f"noise {seed}": (lambda seed=seed: b"\xff" + np.random.default_rng(seed).bytes(4096)) for seed in range(5)},
}
"""Row 31: `unrecognised-format`."""
