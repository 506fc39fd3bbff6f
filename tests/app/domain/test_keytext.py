"""The text of a key: its checksum, old ones without, and what is stored of it."""

from __future__ import annotations

import hashlib
import hmac
import string

import pytest

from app.domain import ids, keytext


def test_text_when_made_then_form_checksum_and_enough_chance() -> None:
    key = ids.new_id("key")
    made = {keytext.make(key) for _ in range(50)}
    assert len(made) == 50
    for text in made:
        assert len(text) == 52 and text.startswith(f"tf_{key[4:14]}_")
        assert text.endswith(keytext.checksum(text[:-6])) and keytext.is_whole(text)


def test_checksum_when_counted_then_crc_32_in_base_62() -> None:
    assert keytext.checksum("") == "000000"
    assert keytext.checksum("123456789") == "3Jzrme"  # CRC-32 0xCBF43926 = 3421780262
    digits = string.digits + string.ascii_letters
    number = 0
    for digit in keytext.checksum("123456789"):
        number = number * 62 + digits.index(digit)
    assert number == 0xCBF43926


def test_text_when_one_character_is_mistyped_or_two_are_swapped_then_told() -> None:
    text = keytext.make(ids.new_id("key"))
    for place in range(3, len(text)):
        for char in ("a", "Z", "0"):
            wrong = text[:place] + char + text[place + 1 :]
            assert keytext.is_whole(wrong) is (wrong == text)
    for place in range(14, len(text) - 1):
        wrong = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
        assert keytext.is_whole(wrong) is (wrong == text)


@pytest.mark.parametrize("text", ["", "tf_", "tf_none", "tf_x_y", "tfa_" + "a" * 43, "tf_" + "a" * 4000, "tf_é"])
def test_text_when_it_has_another_form_then_no_key(text: str) -> None:
    assert not keytext.is_whole(text)


def test_text_when_from_before_there_were_checksums_then_whole() -> None:
    assert keytext.is_whole(f"tf_{'0' * 10}_{'aB3' * 10}xy")
    assert not keytext.is_whole(f"tf_{'0' * 10}_{'aB3' * 10}x")


def test_digest_when_there_is_a_pepper_then_an_hmac_first_and_the_plain_one_known() -> None:
    plain = hashlib.sha256(b"tf_text").hexdigest()
    assert keytext.digests("tf_text", "") == [plain]
    peppered = hmac.new(b"pepper", b"tf_text", hashlib.sha256).hexdigest()
    assert keytext.digests("tf_text", "pepper") == [peppered, plain]
