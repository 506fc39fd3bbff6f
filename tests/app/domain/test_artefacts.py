"""The names of the files that an export hands out."""

from __future__ import annotations

from app.domain.artefacts import KINDS, suffix_of, title_of

LONGEST_KIND = 16  # what the table of artefacts holds


def test_kinds_when_listed_then_files_titles_and_suffixes_are_all_different() -> None:
    assert len({kind.file for kind in KINDS.values()}) == len(KINDS)
    assert len({kind.title for kind in KINDS.values()}) == len(KINDS)
    assert len({kind.suffix for kind in KINDS.values()}) == len(KINDS)
    assert max(len(kind) for kind in KINDS) <= LONGEST_KIND


def test_title_and_suffix_when_a_kind_is_unknown_then_the_kind_and_nothing() -> None:
    assert (title_of("pruned-onnx"), suffix_of("pruned-onnx")) == ("Pruned float ONNX", ".pruned.onnx")
    assert (title_of("other"), suffix_of("other")) == ("other", "")
