"""Every network of the zoo, from every exporter and opset: read, and equal to its source."""

from __future__ import annotations

import pytest

from tests.zoo import ZOO
from tests.zoo.running import difference, outputs
from tests.zoo.sources import SOURCES, CannotExport, Source, exported
from worker.graph.extents import inputs_of
from worker.graph.read import read_network

TOLERANCE = 1e-5


@pytest.mark.parametrize("source", SOURCES, ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_network_when_read_then_equals_its_source_at_batch_1_and_7(name: str, source: Source) -> None:
    try:
        data = exported(name, source)
    except CannotExport as reason:
        pytest.skip(f"the exporter can't: {reason}")
    entry = ZOO[name]
    module, net = read_network(data), entry.network()
    assert tuple(item.shape for item in inputs_of(module)) == entry.shapes
    for batch in (1, 7):
        inputs = entry.inputs(batch)
        assert difference(outputs(module, inputs), outputs(net, inputs)) < TOLERANCE


@pytest.mark.parametrize("name", ZOO)
def test_network_when_exported_then_there_are_an_archive_and_an_onnx_file(name: str) -> None:
    assert {source.exporter for source in SOURCES if _is_exportable(name, source)} >= {"pt2", "dynamo"}


def _is_exportable(name: str, source: Source) -> bool:
    try:
        exported(name, source)
    except CannotExport:
        return False
    return True
