"""What content is taken for, by its first bytes."""

from __future__ import annotations

import pytest

from app.domain.formats import FormatRefused, Kind, sniff


def no_entries() -> list[str]:
    raise AssertionError("only a zip has entries")


@pytest.mark.parametrize("tag", b"\x08\x12\x1a\x22\x28\x32\x3a\x42\x72")
def test_sniff_when_a_model_proto_field_leads_then_onnx(tag: int) -> None:
    assert sniff(bytes([tag]) + b"\x00" * 40, 41, "network", no_entries) == "onnx"


@pytest.mark.parametrize("kind", ["dataset", "weights"])
@pytest.mark.parametrize("length", [128, 640, 896, 1152, 1408])
def test_sniff_when_a_safetensors_header_is_as_long_as_a_pickles_first_bytes_then_safetensors(
    length: int, kind: Kind
) -> None:
    head = length.to_bytes(8, "little") + b'{"x":'
    assert sniff(head + b" " * 499, 4096, kind, no_entries) == "safetensors"


@pytest.mark.parametrize(
    ("head", "kind", "slug"),
    [
        (b"\x80\x02" + b"}q" * 30, "dataset", "unsafe-format"),
        (b"\x80\x05" + b"}q" * 30, "network", "unsafe-format"),
        (b"(dp0\nS'a'\np1\n" + b" " * 30, "network", "unsafe-format"),
        (b"\x93NUMPY" + b" " * 60, "network", "unsupported-format"),
        (b"\x00" * 257 + b"ustar" + b"\x00" * 20, "network", "unsafe-format"),
        (b"\xff" * 60, "dataset", "unrecognised-format"),
        (b"abc", "network", "unrecognised-format"),
        (b"\x80\x02" + b"}q" * 30, "weights", "unsafe-format"),
        (b"\x08\x09" + b"x" * 60, "weights", "unrecognised-format"),
    ],
)
def test_sniff_when_content_is_not_read_then_refused_by_name(head: bytes, kind: str, slug: str) -> None:
    with pytest.raises(FormatRefused) as refusal:
        sniff(head, len(head), kind, no_entries)  # type: ignore[arg-type]
    assert refusal.value.slug == slug
