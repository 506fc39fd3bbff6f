"""The simulated network: in-place rounding must never reach a value that something else still reads."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from tests.worker.quant.digits import assignment, data, evaluator, trained
from worker.quant.grids import ActivationGrid
from worker.quant.network import CompressedNetwork
from worker.quant.walk import run


def pictures(count: int = 64) -> torch.Tensor:
    return data()["evaluation"].inputs[0][:count]


def compressed(keep: float = 0.75, bits: int = 4) -> CompressedNetwork:
    return evaluator().compress(assignment(trained().graph, keep, bits, bits), "fast")


class Reference(fx.Interpreter):
    """Runs the graph by torch.fx and rounds out of place: nothing to get wrong."""

    def __init__(self, network: CompressedNetwork) -> None:
        super().__init__(network.module)
        self.grids = network.grids

    def run_node(self, n: fx.Node) -> torch.Tensor:
        value: torch.Tensor = super().run_node(n)
        grid = self.grids.get(n.name)
        return value if grid is None else grid.fake_quantize_(value.clone())


def test_run_when_nothing_is_hooked_then_equals_the_module() -> None:
    with torch.no_grad():
        assert torch.equal(run(trained().folded, pictures()), trained().folded(pictures()))


def test_run_when_finished_then_the_input_is_untouched() -> None:
    x = pictures().clone()
    compressed().forward(x)
    assert torch.equal(x, pictures())


def test_forward_when_compared_with_an_interpreter_out_of_place_then_equal() -> None:
    network = compressed()
    with torch.no_grad():
        assert torch.equal(network.forward(pictures()), Reference(network).run(pictures()))


def test_forward_when_the_batch_is_split_then_the_same_outputs() -> None:
    network = compressed()
    halves = torch.cat([network.forward(part) for part in pictures().split(16)])
    assert torch.allclose(network.forward(pictures()), halves, atol=1e-4)


def test_layers_when_quantized_then_the_module_holds_exactly_their_dequantised_values() -> None:
    network = compressed()
    assert set(network.layers) == {layer.name for layer in trained().graph.layers}
    for name, layer in network.layers.items():
        assert layer.weight_int is not None and layer.weight_scale is not None
        scale = layer.weight_scale.reshape(-1, *[1] * (layer.weight_int.ndim - 1))
        leaf = network.module.get_submodule(name)
        assert np.array_equal(leaf.weight.numpy(), layer.weight_int.astype(np.float32) * scale)
        assert np.array_equal(leaf.bias.numpy(), layer.bias)


def test_layers_when_quantized_then_bits_bound_the_integers_and_shapes_follow_the_kept_channels() -> None:
    network, graph = compressed(), trained().graph
    for layer in graph.layers:
        stored = network.layers[layer.name].weight_int
        assert stored is not None and stored.dtype == np.int8
        assert np.abs(stored).max() <= 7
        assert stored.shape[0] == layer.out_width.kept(network.assignment.keep)


def test_layers_when_the_input_has_a_grid_then_the_bias_lies_on_the_accumulators_grid() -> None:
    network = compressed()
    for layer in trained().graph.layers:
        stored, grid = network.layers[layer.name], network.grids[layer.input]
        assert stored.weight_scale is not None
        integers = stored.bias.astype(np.float64) / (grid.scale * stored.weight_scale.astype(np.float64))
        assert np.abs(integers - np.rint(integers)).max() < 2e-7 * max(1.0, np.abs(integers).max())


def test_grids_when_quantized_then_every_site_but_the_output_has_one_of_the_assigned_width() -> None:
    network = compressed()
    for item in trained().graph.activations:
        if item.role == "output":
            assert item.id not in network.grids
        else:
            assert network.grids[item.id].bits == network.assignment.activation_bits[item.id]
            assert network.grids[item.id].zero_point == 0 or not item.unsigned


def test_input_scale_when_the_site_is_float_then_none() -> None:
    network = CompressedNetwork(
        trained().folded, {}, {"x": ActivationGrid(0.5, 3, 8)}, (1, 8, 8), compressed().assignment
    )
    assert (network.input_scale("x"), network.input_scale("y")) == (0.5, None)
