"""The ninety bad inputs and faults that the service must withstand, and which test proves each.

A test that proves a row carries `@pytest.mark.fault(row)`. Rows without one are named here with the reason; a row that
has a test may not stand here.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROWS = range(1, 91)

NOT_APPLICABLE: dict[int, str] = {}
"""Rows about something that tightfit does not have."""

MISSING: dict[int, str] = {
    71: "webhooks: none",
}
"""Rows that no test proves yet."""


def marked(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (row, test) of every fault mark on a test function of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    for value in mark.args:
                        assert isinstance(value, ast.Constant) and isinstance(value.value, int), ast.unparse(mark)
                        yield value.value, f"{path.relative_to(TESTS)}::{node.name}"


def proofs() -> dict[int, list[str]]:
    """Return the tests that prove each row."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        for row, test in marked(path):
            found[row].append(test)
    return found


def test_fault_when_named_in_the_specification_then_a_test_proves_it_or_it_is_listed_with_the_reason() -> None:
    found = proofs()
    assert set(found) <= set(ROWS)
    assert sorted({*found, *MISSING, *NOT_APPLICABLE}) == list(ROWS)


def test_fault_when_a_test_proves_it_then_it_is_not_listed_as_missing() -> None:
    found = proofs()
    assert not set(found) & {*MISSING, *NOT_APPLICABLE}, "take these rows out of the list"
    assert not set(MISSING) & set(NOT_APPLICABLE)
    assert all(reason for reason in (*MISSING.values(), *NOT_APPLICABLE.values()))
