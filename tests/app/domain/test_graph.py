"""The picture of a network."""

from __future__ import annotations

import json

import pytest

from app.domain.graph import ModelGraph, Width
from tests.app.domain.drawings import skip, two_convs


@pytest.mark.parametrize("graph", [two_convs(), skip()])
def test_graph_when_sent_through_json_then_comes_back_equal(graph: ModelGraph) -> None:
    assert ModelGraph.from_json(json.loads(json.dumps(graph.to_json()))) == graph


def test_width_when_groups_keep_less_then_columns_follow() -> None:
    width = Width((("a", 1), ("b", 49)), 3)
    assert width.kept({"a": 5, "b": 2}) == 3 + 5 + 98


def test_graph_when_looked_up_then_by_name() -> None:
    graph = skip()
    assert graph.layer["deep"].kernel_size == 9
    assert graph.group["t"].producers == ("stem", "conv_c", "deep")
    assert graph.activation["d"].positions == 16
    assert [group.id for group in graph.prunable] == ["t", "i"]
