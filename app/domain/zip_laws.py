"""The laws of a zip archive, held against its own bytes before any entry is used.

Readers of zip files disagree about files that lie, and the lies hide in what they disagree about. So only one reading
is allowed here: the entries lie one behind the other from the first byte on, without gaps; the central directory
follows, says the same as the entries' own headers, and names nothing twice; the end record, without a comment, closes
the file. What torch.export, NumPy and zip tools write keeps these laws. (PKWARE APPNOTE 6.3.10, sections 4.3 to 4.5.)
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

MAX_ENTRIES = 20_000
MAX_DIRECTORY = 8 << 20
MAX_NAME = 512
MAX_EXTRA = 128

STORED, DEFLATED = 0, 8
Buffer = bytes | mmap.mmap

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_DESCRIPTORS = (struct.Struct("<4s3L"), struct.Struct("<4sLQQ"), struct.Struct("<3L"), struct.Struct("<LQQ"))
_SIGNATURE = b"PK\x07\x08"
_SENTINEL = 0xFFFFFFFF
_UTF8, _DESCRIPTOR = 0x800, 0x8
_LEGAL_FLAGS = _UTF8 | _DESCRIPTOR | 0x6  # bits 1 and 2 only say how hard deflate tried
_LEGAL_KINDS = (0, 0o100000, 0o040000)  # unknown, a file, a folder: no link, no device
_DRIVE = re.compile(r"[A-Za-z]:")


class ZipRefused(Exception):
    """An archive that breaks a law; `slug` names the problem."""

    def __init__(self, slug: str, detail: str) -> None:
        super().__init__(f"{slug}: {detail}")
        self.slug, self.detail = slug, detail


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as the central directory tells it: `stored` bytes in the file, `expanded` bytes of content."""

    name: str
    header: int
    stored: int
    expanded: int
    crc: int
    method: int


@dataclass(frozen=True, slots=True)
class _Directory:
    """Where the central directory lies and how many entries it lists."""

    start: int
    end: int
    count: int


def is_closed(tail: bytes) -> bool:
    """Tell whether bytes end as a zip archive without a comment does."""
    return tail[-_END.size : -_END.size + 4] == b"PK\x05\x06" and tail[-2:] == b"\0\0"


def directory(data: Buffer) -> list[Entry]:
    """Return the entries that the central directory lists, in its order; nothing of theirs is looked at.

    Raises ZipRefused (invalid-archive).
    """
    place = _directory(data)
    found: list[Entry] = []
    names: set[str] = set()
    at = place.start
    for _ in range(place.count):
        entry, at = _central(data, at, place.end)
        if entry.name in names:
            raise _invalid(f"entry {entry.name!r} is there twice")
        names.add(entry.name)
        found.append(entry)
    if at != place.end:
        raise _invalid("the central directory is longer than its entries")
    return found


def contents(data: Buffer, methods: Iterable[int] = (STORED,)) -> dict[str, tuple[Entry, int]]:
    """Return, by name, each entry and where its content begins, once every law holds.

    Contents are not read: whoever does, checks their CRC. Raises ZipRefused (invalid-archive, compressed-entry,
    overlapping-entries).
    """
    allowed, found, end = set(methods), {}, 0
    entries = directory(data)
    for entry in entries:
        check_method(entry, allowed)
    for entry in sorted(entries, key=lambda item: item.header):
        _check_place(entry, end, entry.header)
        start = _local(data, entry)
        end = _behind(data, entry, start)
        found[entry.name] = (entry, start)
    last = Entry("the central directory", _directory(data).start, 0, 0, 0, 0)
    _check_place(last, end, last.header)
    return found


def check_method(entry: Entry, allowed: Iterable[int] = (STORED,)) -> None:
    """Raise ZipRefused compressed-entry where an entry may not be stored as it is."""
    if entry.method not in allowed or (entry.method == STORED and entry.stored != entry.expanded):
        said = f"entry {entry.name!r} holds {entry.expanded} bytes in {entry.stored}, by method {entry.method}"
        raise ZipRefused("compressed-entry", said)


def check_listed(entries: Iterable[Entry]) -> None:
    """Raise ZipRefused (compressed-entry, overlapping-entries) for what the directory alone gives away."""
    end = 0
    for entry in sorted(entries, key=lambda item: item.header):
        check_method(entry)
        if entry.header < end:
            raise ZipRefused("overlapping-entries", f"entry {entry.name!r} begins inside another")
        end = entry.header + _LOCAL.size + len(entry.name) + entry.stored


def _invalid(detail: str) -> ZipRefused:
    return ZipRefused("invalid-archive", detail)


def _check_place(entry: Entry, wanted: int, found: int) -> None:
    if found < wanted:
        raise ZipRefused("overlapping-entries", f"entry {entry.name!r} begins inside another")
    if found > wanted:
        raise _invalid(f"{found - wanted} bytes in front of {entry.name!r} belong to no entry")


def _directory(data: Buffer) -> _Directory:
    at = len(data) - _END.size
    if at < 0 or data[at : at + 4] != b"PK\x05\x06":
        raise _invalid("no end record closes the file: it is cut, or has a comment, or something follows it")
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(data, at)
    if disk or first_disk or here != count or comment:
        raise _invalid("the end record tells of other disks, or of a comment")
    end = at
    if data[max(0, at - _LOCATOR64.size) : at][:4] == b"PK\x06\x07":
        count, size, start, end = _directory64(data, at - _LOCATOR64.size, (count, size, start))
    if count > MAX_ENTRIES or size > MAX_DIRECTORY:
        raise _invalid(f"{count} entries in a directory of {size} bytes; at most {MAX_ENTRIES} are read")
    if start + size != end or count * _CENTRAL.size > size:
        raise _invalid(f"the central directory of {size} bytes at {start} does not end at {end}")
    return _Directory(start, end, count)


def _directory64(data: Buffer, at: int, plain: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Return (count, size, start, end) of the directory by the zip64 records, which must agree with the plain one."""
    _, disk, record, disks = _LOCATOR64.unpack_from(data, at)
    if disk or disks != 1 or record < 0 or record + _END64.size != at or data[record : record + 4] != b"PK\x06\x06":
        raise _invalid("the zip64 end record is not where its locator says")
    _, length, _, _, disk, first_disk, here, count, size, start = _END64.unpack_from(data, record)
    if length != _END64.size - 12 or disk or first_disk or here != count:
        raise _invalid("the zip64 end record tells of other disks, or of more than it holds")
    for said, meant, sentinel in zip(plain, (count, size, start), (0xFFFF, _SENTINEL, _SENTINEL), strict=True):
        if said not in (meant, sentinel):
            raise _invalid("the zip64 end record disagrees with the plain one")
    return count, size, start, record


def _central(data: Buffer, at: int, end: int) -> tuple[Entry, int]:
    """Return the entry at a place of the central directory, and the next place."""
    if at + _CENTRAL.size > end or data[at : at + 4] != b"PK\x01\x02":
        raise _invalid(f"no directory entry at byte {at}")
    fields = _CENTRAL.unpack_from(data, at)
    _, _, _, flags, method, _, _, crc, stored, expanded, name_length, extra_length = fields[:12]
    comment, disk, _, attributes, header = fields[12:]
    text = at + _CENTRAL.size
    behind = text + name_length + extra_length
    if behind > end or not 0 < name_length <= MAX_NAME or extra_length > MAX_EXTRA or comment or disk:
        raise _invalid(f"the directory entry at byte {at} has an overlong name or extra field, or a comment")
    name = _name(data[text : text + name_length], flags)
    if (attributes >> 16) & 0o170000 not in _LEGAL_KINDS:
        raise _invalid(f"entry {name!r} is a link or a device")
    extra = _extra64(data[text + name_length : behind], name)
    expanded, stored, header = _wide((expanded, stored, header), extra, name)
    return Entry(name, header, stored, expanded, crc, method), behind


def _name(raw: bytes, flags: int) -> str:
    """Return an entry's name: a relative path, of printable characters, that leads nowhere else."""
    if flags & ~_LEGAL_FLAGS:
        raise _invalid(f"entry {raw[:100]!r} is encrypted, or of a kind that is not read (flags {flags:#x})")
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise _invalid(f"entry {raw[:100]!r} has a broken name") from error
    parts = name.removesuffix("/").split("/")
    if not name.isprintable() or "\\" in name or _DRIVE.match(name) or not {"", ".", ".."}.isdisjoint(parts):
        raise _invalid(f"entry {name[:100]!r} has an illegal name")
    return name


def _extra64(extra: bytes, name: str) -> bytes | None:
    """Return the zip64 field of an extra block, or None; the block must be a row of whole fields."""
    found, at = None, 0
    while at < len(extra):
        kind, length = struct.unpack_from("<2H", extra.ljust(at + 4, b"\0"), at)
        field = extra[at + 4 : at + 4 + length]
        if len(field) != length or at + 4 > len(extra) or (kind == 1 and found is not None):
            raise _invalid(f"entry {name!r} has a broken extra field")
        found = field if kind == 1 else found
        at += 4 + length
    return found


def _wide(plain: tuple[int, int, int], extra: bytes | None, name: str) -> tuple[int, int, int]:
    """Return sizes and offset, those that do not fit into 32 bits from the zip64 field, which holds no others."""
    missing = [index for index, value in enumerate(plain) if value == _SENTINEL]
    if len(extra or b"") != 8 * len(missing):
        raise _invalid(f"entry {name!r} has a zip64 field that does not hold what it should")
    values = list(plain)
    for index, value in zip(missing, struct.unpack(f"<{len(missing)}Q", extra or b""), strict=True):
        values[index] = value
    return values[0], values[1], values[2]


def _local(data: Buffer, entry: Entry) -> int:
    """Hold an entry's own header against the directory; return where its content begins."""
    at = entry.header
    if at + _LOCAL.size > len(data) or data[at : at + 4] != b"PK\x03\x04":
        raise _invalid(f"entry {entry.name!r} has no header at byte {at}")
    _, _, flags, method, _, _, crc, stored, expanded, name_length, extra_length = _LOCAL.unpack_from(data, at)
    text = at + _LOCAL.size
    start: int = text + name_length + extra_length
    if name_length > MAX_NAME or extra_length > MAX_EXTRA or start + entry.stored > len(data):
        raise _invalid(f"entry {entry.name!r} has an overlong name, extra field or content")
    if _name(data[text : text + name_length], flags) != entry.name or method != entry.method:
        raise _invalid(f"entry {entry.name!r} has another name or method in its own header")
    extra = _extra64(data[text + name_length : start], entry.name)
    told = (expanded, stored)
    if extra is not None:
        told = _told64(told, extra, entry)
    blank = bool(flags & _DESCRIPTOR)  # its header was written before its size was known
    if (crc, told) != (entry.crc, (entry.expanded, entry.stored)) and not (blank and (crc, told) == (0, (0, 0))):
        raise _invalid(f"entry {entry.name!r} has another size or CRC in its own header")
    return start


def _told64(plain: tuple[int, int], extra: bytes, entry: Entry) -> tuple[int, int]:
    """Return the sizes of an entry's own header by its zip64 field, which holds both."""
    if len(extra) != 16:
        raise _invalid(f"entry {entry.name!r} has a zip64 field of {len(extra)} bytes")
    expanded, stored = struct.unpack("<2Q", extra)
    if any(said not in (_SENTINEL, meant) for said, meant in zip(plain, (expanded, stored), strict=True)):
        raise _invalid(f"entry {entry.name!r} has a zip64 field that disagrees with its header")
    return expanded, stored


def _behind(data: Buffer, entry: Entry, start: int) -> int:
    """Return where an entry ends: behind its content, or behind the descriptor that follows it."""
    end = start + entry.stored
    if not int.from_bytes(data[entry.header + 6 : entry.header + 8], "little") & _DESCRIPTOR:
        return end
    wanted = (entry.crc, entry.stored, entry.expanded)
    for form in _DESCRIPTORS:
        if end + form.size <= len(data):
            found = form.unpack_from(data, end)
            if found in (wanted, (_SIGNATURE, *wanted)):
                return end + form.size
    raise _invalid(f"entry {entry.name!r} has another size or CRC behind its content")
