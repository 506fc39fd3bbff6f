"""Hostile .pt2 archives: bombs, overlaps, lying headers, escapes and polyglots."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache

from tests.security import tensors
from tests.security.pickles import evil_pickle
from tests.security.zips import Item, changed, deflated, items_of, packed, wide_end
from tests.worker.graph.nets import exported, make

Made = Callable[[], bytes]
WEIGHT, PROGRAM, SAMPLE = "data/weights/weight_0", "models/model.json", "sample_inputs/model.pt"
COUNT = 100_000
BOMB = 22 << 20
KERNELS = 250


@cache
def sound() -> bytes:
    """Return what torch.export.save writes for a small network."""
    return exported(make("plain"))


@cache
def items() -> tuple[Item, ...]:
    """Return its entries."""
    return tuple(items_of(sound()))


def lying(ending: str, **changes: object) -> Made:
    """Return a maker of the sound archive in which one entry lies."""
    return lambda: packed(changed(items(), ending, **changes))


def bomb(network: bool) -> bytes:
    """Return 42 kB that expand to 5.5 GB: one deflated kernel that 250 entries share."""
    small, fields = deflated(bytes(BOMB))
    name = f"archive/{PROGRAM}" if network else "0"
    first = Item(name, small, both=fields)
    shared = [Item(f"e{number:03}", b"", both=fields, header=0) for number in range(1, KERNELS)]
    body = packed([first])
    listed = packed([first, *shared])
    assert len(listed) < 80_000 and KERNELS * BOMB > 5.4e9
    # the shared entries' own headers are left out: only the directory tells of them
    start = body.index(b"PK\x01\x02")
    directory = listed[listed.index(b"PK\x01\x02") : -22]
    return (
        body[:start]
        + directory
        + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, KERNELS, KERNELS, len(directory), start, 0)
    )


def nested(network: bool) -> bytes:
    """Return a zip inside a zip, deflated."""
    inner, fields = deflated(bomb(False))
    return packed([*(items() if network else ()), Item("archive/inner.zip", inner, both=fields)])


def shared_entry() -> bytes:
    """Return an archive of which two entries share one header and content."""
    twin = next(item for item in items() if item.name.endswith(WEIGHT))
    return packed(
        [
            *items(),
            Item(twin.name + "_twin", b"", both={"stored": len(twin.data), "expanded": len(twin.data)}, header=0),
        ]
    )


def swallowed() -> bytes:
    """Return an archive of which one entry's content reaches over the next entry."""
    held = list(items())
    first, second = held[0], held[1]
    size = len(first.data) + 30 + len(second.name) + len(second.data)
    return packed([Item(first.name, first.data, both={"stored": size, "expanded": size}), *held[1:]])


def many() -> bytes:
    """Return an archive of 100,000 empty entries, told in zip64 records."""
    held = [*items(), *(Item(f"e{number}") for number in range(COUNT))]
    count = len(held)
    plain = packed(held, end={"count": 0xFFFF})
    at = len(plain) - 22
    _, _, _, _, _, size, start, _ = struct.unpack_from("<4s4H2LH", plain, at)
    return plain[:at] + wide_end(count, size, start, at) + plain[at:]


def zip64(**lies: int) -> bytes:
    """Return the sound archive with zip64 records, of which some fields lie."""
    plain = packed(items())
    at = len(plain) - 22
    _, _, _, _, count, size, start, _ = struct.unpack_from("<4s4H2LH", plain, at)
    fields = {"count": count, "size": size, "start": start, "at": at, **lies}
    return plain[:at] + wide_end(**fields) + plain[at:]


def with_descriptor(descriptor: bytes) -> Made:
    """Return a maker of the sound archive in which one entry tells its sizes behind its content."""
    blank = {"crc": 0, "stored": 0, "expanded": 0}
    return lying("byteorder", both={"flags": 0x808}, local=blank, descriptor=descriptor)


def written_by_zipfile() -> bytes:
    """Return the sound archive, repacked by the standard library."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for item in items():
            archive.writestr(item.name, item.data)
    return buffer.getvalue()


LEGAL: dict[str, Made] = {
    "written by torch.export.save": sound,
    "repacked": lambda: packed(items()),
    "repacked by zipfile": written_by_zipfile,
    "zip64 records that agree": zip64,
    "a stored zip inside, never opened": lambda: packed([*items(), Item("archive/inner.zip", bomb(False))]),
    "sizes behind the content": with_descriptor(struct.pack("<4s3L", b"PK\x07\x08", zlib.crc32(b"little"), 6, 6)),
    "sizes behind the content, bare": with_descriptor(struct.pack("<LQQ", zlib.crc32(b"little"), 6, 6)),
}

BOMBS: dict[str, tuple[Made, str]] = {
    "deflate bomb": (lambda: bomb(False), "compressed-entry"),
    "deflate bomb as a program": (lambda: bomb(True), "compressed-entry"),
    "nested zip": (lambda: nested(False), "compressed-entry"),
    "nested zip beside a network": (lambda: nested(True), "compressed-entry"),
    "stored, but of two sizes": (lying(SAMPLE, both={"expanded": 1 << 31}), "compressed-entry"),
    "two entries share their bytes": (shared_entry, "overlapping-entries"),
    "an entry swallows the next": (swallowed, "overlapping-entries"),
}

LIES: dict[str, Made] = {
    "a name twice": lambda: packed([*items(), items()[0]]),
    "another name in its own header": lying(WEIGHT, local={"name": b"archive/data/weights/weight_X"}),
    "another size in its own header": lying(WEIGHT, local={"stored": 1, "expanded": 1}),
    "another CRC in its own header": lying(WEIGHT, local={"crc": 1}),
    "another method in its own header": lying(WEIGHT, local={"method": 8}),
    "bad CRC of a weight": lying(WEIGHT, both={"crc": 1}),
    "bad CRC of the program": lying(PROGRAM, both={"crc": 1}),
    "encrypted": lying(WEIGHT, both={"flags": 0x801}),
    "encrypted, by its own header only": lying(WEIGHT, local={"flags": 0x801}),
    "strongly encrypted": lying(WEIGHT, both={"flags": 0x840}),
    "data before the zip": lambda: b"#!/bin/sh\n" + bytes(64) + sound(),
    "data before the zip, offsets moved": lambda: packed(items(), before=b"#!/bin/sh\n" + bytes(64)),
    "an entry that no directory lists": lambda: packed(items(), before=sound()[:200]),
    "data after the zip": lambda: sound() + bytes(64),
    "a zip after the zip": lambda: sound() + sound(),
    "bytes between entries": lying(WEIGHT, gap=bytes(40)),
    "bytes in front of the directory": lambda: packed([*items(), Item("archive/last", gap=b"hidden")]),
    "an overlong extra field": lying(WEIGHT, local={"extra": struct.pack("<2H", 0x9999, 296) + bytes(296)}),
    "a broken extra field": lying(WEIGHT, both={"extra": b"FB\xff\x00Z"}),
    "comment of 64 KiB": lambda: packed(items(), comment=bytes(65_535)),
    "comment that ends as a zip does": lambda: packed(items(), comment=b"PK\x05\x06" + bytes(18)),
    "comment of an entry": lying(WEIGHT, central={"comment": b"hello"}),
    "zip64 record elsewhere": lambda: zip64(record_at=7),
    "zip64 of another count": lambda: zip64(count=3),
    "zip64 of another start": lambda: zip64(start=0),
    "zip64 of 2^63 entries": lambda: zip64(count=1 << 63),
    "zip64 sizes without their field": lying(WEIGHT, both={"stored": 0xFFFFFFFF, "expanded": 0xFFFFFFFF}),
    "zip64 field that nothing asks for": lying(WEIGHT, central={"extra": struct.pack("<2HQ", 1, 8, 5)}),
    "zip64 field of its own header": lying(WEIGHT, local={"extra": struct.pack("<2H2Q", 1, 16, 5, 5)}),
    "zip64 offset past the end": lying(
        WEIGHT, header=0xFFFFFFFF, central={"extra": struct.pack("<2HQ", 1, 8, 1 << 62)}
    ),
    "100,000 entries": many,
    "too many counted": lambda: packed(items(), end={"count": 999}),
    "too few counted": lambda: packed(items(), end={"count": 2}),
    "directory elsewhere": lambda: packed(items(), end={"start": 0}),
    "directory of another disk": lambda: packed(items(), end={"disk": 1}),
    "offset past the end": lying(WEIGHT, header=1 << 31),
    "cut in the middle": lambda: sound()[: len(sound()) // 2],
    "cut at the end": lambda: sound()[:-1],
    "two programs": lambda: packed([*items(), Item("other/" + PROGRAM, b"{}")]),
    "no JSON": lying(PROGRAM, data=b"__import__('os')"),
    "nested JSON": lying(PROGRAM, data=b"[" * 100_000 + b"]" * 100_000),
    "big-endian": lying("byteorder", data=b"big"),
    "another CRC behind the content": with_descriptor(struct.pack("<4s3L", b"PK\x07\x08", 1, 6, 6)),
    "nothing behind the content": with_descriptor(b""),
}
"""Everything whose answer is `invalid-archive`."""

ESCAPES: dict[str, Made] = {
    **{
        repr(name): (lambda name=name: packed([*items(), Item(name, b"x")]))
        for name in (
            *("../../x", "archive/../../x", "/etc/x", "C:\\x", "C:x", "\\\\host\\x", "archive/./x", "archive//x"),
            *("archive/a\x00b", "archive/a\nb", "archive/a\u202eb", "x" * 600),
        )
    },
    "a symbolic link": lying(SAMPLE, central={"attributes": 0o120777 << 16}),
    "a device": lying(SAMPLE, central={"attributes": 0o020666 << 16}),
    "a broken name": lying(SAMPLE, both={"name": b"archive/\xff\xfe"}),
}
"""Everything of row 44, whose answer is `invalid-archive`."""

POLYGLOTS: dict[str, tuple[str, Made]] = {
    "safetensors and a zip": ("weights", lambda: tensors.sound() + tensors.zip_bytes()),
    "safetensors and a zip as a network": ("network", lambda: tensors.sound() + sound()),
    "safetensors and a zip as a dataset": ("dataset", lambda: tensors.sound() + tensors.zip_bytes()),
    "pickle and a zip": ("network", lambda: evil_pickle(4) + sound()),
    "old pickle and a zip": ("network", lambda: evil_pickle(0) + sound()),
    "pickle and a zip as a dataset": ("dataset", lambda: evil_pickle(2) + tensors.zip_bytes()),
    "ONNX and a zip": ("network", lambda: b"\x08\x09\x12\x00" + bytes(2) + sound()),
}
"""Everything of row 45, whose answer is `trailing-data`."""
