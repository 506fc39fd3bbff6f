"""Zip archives byte by byte, with any lie in any header."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.domain.zip_laws import contents

DEFLATED = 8


@dataclass(frozen=True)
class Item:
    """An entry; `both`, `local` and `central` override header fields, `header` the offset that the directory tells."""

    name: str
    data: bytes = b""
    both: Mapping[str, Any] = field(default_factory=dict)
    local: Mapping[str, Any] = field(default_factory=dict)
    central: Mapping[str, Any] = field(default_factory=dict)
    header: int | None = None
    descriptor: bytes = b""
    gap: bytes = b""


def honest(item: Item) -> dict[str, Any]:
    """Return the header fields of an entry that does not lie."""
    size = len(item.data)
    fields = {"flags": 0x800, "method": 0, "crc": zlib.crc32(item.data), "stored": size, "expanded": size}
    return {**fields, "name": item.name.encode(), "extra": b"", **item.both}


def local(item: Item) -> bytes:
    """Return an entry's own header, its content and what follows."""
    f = {**honest(item), **item.local}
    sizes = (f["crc"], f["stored"], f["expanded"], len(f["name"]), len(f["extra"]))
    head = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, f["flags"], f["method"], 0, 0, *sizes)
    return head + f["name"] + f["extra"] + item.data + item.descriptor + item.gap


def central(item: Item, at: int) -> bytes:
    """Return an entry of the directory."""
    f = {"attributes": 0, "comment": b"", "disk": 0, **honest(item), **item.central}
    sizes = (f["crc"], f["stored"], f["expanded"], len(f["name"]), len(f["extra"]), len(f["comment"]), f["disk"])
    at = at if item.header is None else item.header
    head = struct.pack(
        "<4s6H3L5H2L", b"PK\x01\x02", 20, 20, f["flags"], f["method"], 0, 0, *sizes, 0, f["attributes"], at
    )
    return head + f["name"] + f["extra"] + f["comment"]


def packed(items: Sequence[Item], before: bytes = b"", comment: bytes = b"", end: Mapping[str, Any] = {}) -> bytes:
    """Return an archive; `before` lies in front of the first entry (offsets count it), `end` overrides the end record.

    `end` may hold `count`, `size`, `start`, `disk`, and `wide`: bytes in front of the end record.
    """
    body, offsets = bytearray(before), []
    for item in items:
        offsets.append(len(body))
        body += local(item)
    start = len(body)
    listed = b"".join(central(item, at) for item, at in zip(items, offsets, strict=True))
    count = end.get("count", len(items))
    size, first = end.get("size", len(listed)), end.get("start", start)
    record = struct.pack("<4s4H2LH", b"PK\x05\x06", end.get("disk", 0), 0, count, count, size, first, len(comment))
    return bytes(body) + listed + end.get("wide", b"") + record + comment


def wide_end(count: int, size: int, start: int, at: int, record_at: int | None = None) -> bytes:
    """Return a zip64 end record with its locator; `at` is where it lies, `record_at` where the locator says so."""
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    return record + struct.pack("<4sLQL", b"PK\x06\x07", 0, at if record_at is None else record_at, 1)


def items_of(archive: bytes) -> list[Item]:
    """Return an archive's entries as honest items, in order."""
    return [Item(name, archive[at : at + entry.stored]) for name, (entry, at) in contents(archive).items()]


def changed(items: Sequence[Item], ending: str, **changes: Any) -> list[Item]:
    """Return the items with one, named by its ending, changed."""
    assert sum(item.name.endswith(ending) for item in items) == 1
    return [replace(item, **changes) if item.name.endswith(ending) else item for item in items]


def deflated(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Return data as a zip deflates it, and its header fields."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    small = squeezer.compress(data) + squeezer.flush()
    fields = {"method": DEFLATED, "crc": zlib.crc32(data), "stored": len(small), "expanded": len(data)}
    return small, fields
