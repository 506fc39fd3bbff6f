"""The text of an API key: `tf_<place>_<secret><checksum>`, and what of it is stored.

The checksum tells a mistyped key from a wrong one without a look at the database; keys from before it had none.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import zlib

_ALPHABET = string.digits + string.ascii_letters
_PLACE, _SECRET, _SUM = 10, 32, 6
_FORM = re.compile(rf"tf_[0-9a-z]{{{_PLACE}}}_[0-9A-Za-z]{{{_SECRET}}}(?P<sum>[0-9A-Za-z]{{{_SUM}}})?")


def make(key_id: str) -> str:
    """Return a fresh text for a key: 190 random bits in base 62."""
    body = f"tf_{key_id[4 : 4 + _PLACE]}_{''.join(secrets.choice(_ALPHABET) for _ in range(_SECRET))}"
    return body + checksum(body)


def checksum(text: str) -> str:
    """Return the CRC-32 of a text as six digits in base 62."""
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(_SUM):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits


def is_whole(text: str) -> bool:
    """Tell whether a text can be a key: its form is right, and so is its checksum, where it has one."""
    found = _FORM.fullmatch(text)
    return found is not None and found["sum"] in (None, checksum(text[:-_SUM]))


def digests(text: str, pepper: str) -> list[str]:
    """Return what a key may be stored as, what it is to be stored as first.

    With a pepper that is the HMAC-SHA-256 under it; a plain SHA-256 is from before there was one.
    """
    plain = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    if not pepper:
        return [plain]
    return [hmac.new(pepper.encode(), text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest(), plain]
