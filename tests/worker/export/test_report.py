"""The report as JSON."""

from __future__ import annotations

from worker.export.report import WORST, worst_layers

from .conftest import Lab


def test_worst_layers_when_sites_differ_then_the_lowest_by_the_operation_that_made_them(lab: Lab) -> None:
    graph = lab.graph
    layers = [layer for layer in graph.layers if layer.output is not None]
    sqnr = {layer.output: 40.0 - index for index, layer in enumerate(layers) if layer.output is not None}
    found = worst_layers({graph.layers[0].input: 10.0, **sqnr}, graph)
    assert len(found) == WORST
    assert found[0] == {"site": graph.layers[0].input, "layer": None, "sqnr_db": 10.0}
    assert found[1] == {"site": layers[-1].output, "layer": layers[-1].name, "sqnr_db": 41.0 - len(layers)}
