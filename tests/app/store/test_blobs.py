"""Content-addressed files: whole under their name, or not there."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.store.blobs import BlobCorrupt, Blobs


def test_blob_when_stored_then_named_by_its_content(tmp_path: Path) -> None:
    store = Blobs(tmp_path)
    data = os.urandom(3_000_000)
    sha = store.put(data)
    assert sha == hashlib.sha256(data).hexdigest() == store.put(data)
    assert store.read(sha) == data and store.verify(sha) == tmp_path / sha[:2] / sha
    (tmp_path / "source").write_bytes(data)
    assert store.put_file(tmp_path / "source") == (sha, 3_000_000)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_blob_when_a_bit_flips_then_never_handed_out(tmp_path: Path) -> None:
    store = Blobs(tmp_path)
    sha = store.put(b"weights" * 100)
    data = bytearray(store.path(sha).read_bytes())
    data[300] ^= 1
    store.path(sha).write_bytes(bytes(data))
    for take in (store.read, store.verify):
        with pytest.raises(BlobCorrupt):
            take(sha)


def test_writer_when_it_fails_then_nothing_is_left(tmp_path: Path) -> None:
    store = Blobs(tmp_path)
    with pytest.raises(ZeroDivisionError), store.writer() as writer:
        writer.write(b"half")
        assert writer.peek().read_bytes() == b"half"
        assert writer.sha256 == hashlib.sha256(b"half").hexdigest()
        raise ZeroDivisionError
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_sweep_when_a_killed_process_left_files_then_only_old_ones_go(tmp_path: Path) -> None:
    store = Blobs(tmp_path)
    sha = store.put(b"kept")
    for name, age_s in (("old", 7200), ("new", 10)):
        file = tmp_path / "tmp" / name
        file.write_bytes(b"x")
        os.utime(file, (time.time() - age_s,) * 2)
    assert store.sweep_unfinished(3600.0) == 1
    assert [file.name for file in (tmp_path / "tmp").iterdir()] == ["new"]
    assert store.read(sha) == b"kept"


@given(st.text(max_size=80).filter(lambda text: len(text) != 64 or not set(text) <= set("0123456789abcdef")))
def test_path_when_the_name_is_no_digest_then_refused(name: str) -> None:
    for text in (name, "../" + name, "A" * 64, "0" * 63, "0" * 63 + "/"):
        with pytest.raises(ValueError, match="SHA-256"):
            Blobs(Path("/nowhere")).path(text)
