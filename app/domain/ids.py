"""Prefixed, time-sortable identifiers: `mdl_01k0...`."""

from __future__ import annotations

import hashlib
import os
import re
import time

PREFIXES = {
    "model": "mdl",
    "dataset": "dst",
    "device": "dev",
    "search": "srh",
    "fleet": "flt",
    "trial": "trl",
    "candidate": "cnd",
    "artefact": "art",
    "schedule": "sch",
    "key": "key",
    "timing": "tmg",
    "agent": "agt",
    "measuring": "msr",
    "calibration": "cal",
    "upload": "upl",
    "audit": "aud",
}

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32
_LENGTH = 26
_PATTERN = re.compile(rf"[a-z]{{3}}_[{_ALPHABET}]{{{_LENGTH}}}\Z")


def new_id(noun: str) -> str:
    """Return a fresh id for a noun in `PREFIXES`: 48 bits of milliseconds, then 80 random bits (as in a ULID)."""
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    digits = (_ALPHABET[(number >> shift) & 31] for shift in range(5 * (_LENGTH - 1), -1, -5))
    return f"{PREFIXES[noun]}_{''.join(digits)}"


def is_id(text: str, noun: str) -> bool:
    """Tell whether `text` has the shape of an id of `noun`."""
    return text.startswith(PREFIXES[noun] + "_") and _PATTERN.match(text) is not None


def digest(secret: str) -> str:
    """Return what is stored of a key, code or token: its SHA-256 in hexadecimal digits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
