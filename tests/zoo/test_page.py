"""The page of networks names every network and every kind of file."""

from __future__ import annotations

from pathlib import Path

from tests.zoo import ZOO
from tests.zoo.sources import SOURCES

PAGE = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()


def test_page_when_printed_last_then_it_has_a_figure_for_every_network_and_source() -> None:
    rows = {line.split("`")[1]: line.count("|") - 2 for line in PAGE.splitlines() if line.startswith("| `")}
    header = next(line for line in PAGE.splitlines() if line.startswith("| network | pt2"))
    assert set(rows) == set(ZOO)
    assert [cell.strip() for cell in header.split("|")[2:-1]] == [str(source) for source in SOURCES]
    readings = PAGE.split("## Channel groups")[0]
    assert all(f"| `{name}` |" in readings for name in ZOO)
