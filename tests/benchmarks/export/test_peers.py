"""ONNX Runtime's own static quantization of a network, beside which our file is smaller."""

from __future__ import annotations

import onnx

from benchmarks.export.peers import quantized_by_onnxruntime
from tests.zoo import ZOO
from tests.zoo.sources import Source, exported
from worker.export.agreement import sqnr_db
from worker.export.verify import run_onnx
from worker.graph.write_onnx import write_float
from worker.search.evaluate import open_network


def test_quantized_by_onnxruntime_when_run_then_it_follows_the_float_network_in_int8_weights() -> None:
    network = open_network(exported("resnet", Source("pt2")), "pt2")
    (rows,), plain = ZOO["resnet"].inputs(64), write_float(network.folded)
    found = quantized_by_onnxruntime(plain, rows.numpy())
    held = [item.data_type for item in onnx.load_from_string(found).graph.initializer if len(item.dims) == 4]
    assert len(held) == sum(len(layer.weight_shape) == 4 for layer in network.graph.layers)
    assert set(held) == {onnx.TensorProto.INT8}
    assert sqnr_db(run_onnx(plain, [rows])[0], run_onnx(found, [rows])[0]) > 15
