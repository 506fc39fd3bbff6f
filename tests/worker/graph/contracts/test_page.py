"""The operators' page says what the table says."""

from __future__ import annotations

from pathlib import Path

from worker.graph.ops import ATEN, ONNX, OPS
from worker.graph.ops.page import page

PAGE = Path(__file__).parents[4] / "docs" / "operators.md"


def test_operators_page_when_printed_then_is_the_one_in_docs() -> None:
    assert PAGE.read_text() == page()


def test_operators_page_when_printed_then_names_every_entry_type_and_target() -> None:
    text = page()
    names = {target.removeprefix("aten.").removesuffix(".default") for target in ATEN} | set(ONNX)
    assert [name for name in names if f"`{name}`" not in text] == []
    assert [op.name for op in OPS.values() if f"\n| {op.name} |" not in text] == []
