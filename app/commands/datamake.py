"""Picture folders and arrays to one npz file with `x` (uint8 NHWC or as given) and `y` (class numbers)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"})
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Made:
    """A dataset ready to write: inputs, labels or None, class names, and the layout of the inputs."""

    x: Array
    y: Array | None
    classes: tuple[str, ...]
    layout: str


def from_folder(folder: Path, size: tuple[int, int] | None, gray: bool) -> Made:
    """Read a folder with one sub-folder of pictures per class, in name order; x is uint8 NHWC.

    Raises ValueError when there is no picture, Pillow is missing, or sizes differ and none was asked for.
    """
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [(file, number) for number, name in enumerate(classes) for file in _pictures(folder / name)]
    if not files:
        raise ValueError(f"{folder} holds no sub-folder with pictures ({', '.join(sorted(PICTURES))})")
    pictures = [_read(file, size, gray) for file, _ in files]
    shapes = {picture.shape for picture in pictures}
    if len(shapes) > 1:
        raise ValueError(f"pictures differ in size ({len(shapes)} sizes); name one with --size WIDTHxHEIGHT")
    y = np.array([number for _, number in files], dtype=np.int64)
    return Made(np.stack(pictures), y, tuple(classes), "NHWC")


def from_arrays(source: Path, labels: Path | None) -> Made:
    """Read `x` (and `y`) from an npz file, or x from an npy file and y from another. Never unpickles.

    Raises ValueError when an array is missing, holds objects, or the numbers of rows differ.
    """
    loaded = np.load(source, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        x, y = loaded, None
    else:
        if "x" not in loaded:
            raise ValueError(f"{source} has no array named x (it has {', '.join(loaded.files)})")
        x, y = loaded["x"], loaded.get("y")
    if labels is not None:
        y = np.load(labels, allow_pickle=False)
    if y is not None and len(y) != len(x):
        raise ValueError(f"x has {len(x)} rows and y has {len(y)}")
    return Made(x, y, (), guess_layout(x.shape))


def guess_layout(shape: tuple[int, ...]) -> str:
    """Return the layout an array looks like: the axis of 1, 3 or 4 is the channels, equal last axes are a picture."""
    if len(shape) == 2:
        return "NC"
    if len(shape) == 3:
        return "NHW" if shape[1] == shape[2] else "NCL"
    return "NHWC" if len(shape) == 4 and shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4) else "NCHW"


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return (width, height) from `32x32`. Raises ValueError on anything else."""
    if text is None:
        return None
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ValueError(f"{text!r} is not a size: write WIDTHxHEIGHT, like 32x32")
    return int(width), int(height)


def write(made: Made, out: Path) -> dict[str, Any]:
    """Write the npz file and its declaration beside it (`FILE.json`); return the declaration."""
    arrays: dict[str, Any] = {"x": made.x} if made.y is None else {"x": made.x, "y": made.y}
    np.savez_compressed(out, **arrays)
    spec: dict[str, Any] = {"layout": made.layout}
    if made.x.dtype == np.uint8:
        spec["scale"] = 1 / 255
    record = {
        "path": str(out),
        "rows": len(made.x),
        "shape": list(made.x.shape[1:]),
        "dtype": str(made.x.dtype),
        "labels": made.y is not None,
        "classes": list(made.classes),
        "spec": spec,
    }
    out.with_suffix(out.suffix + ".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def describe(record: dict[str, Any]) -> str:
    """Return what was written, in one line."""
    shape = "x".join(map(str, record["shape"]))
    classes = f", {len(record['classes'])} classes" if record["classes"] else ""
    labels = "" if record["labels"] else ", no labels"
    return f"wrote {record['path']}: {record['rows']} rows of {shape} {record['dtype']}{classes}{labels}"


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)


def _read(path: Path, size: tuple[int, int] | None, gray: bool) -> npt.NDArray[np.uint8]:
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("reading pictures needs Pillow: pip install pillow") from error
    with Image.open(path) as picture:
        converted = picture.convert("L" if gray else "RGB")
        if size is not None:
            converted = converted.resize(size, Image.Resampling.BILINEAR)
        pixels = np.asarray(converted, dtype=np.uint8)
    return pixels[:, :, None] if gray else pixels
