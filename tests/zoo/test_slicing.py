"""Removal is exact: over the whole zoo, random legal assignments sliced equal the masked network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx

from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.domain.space import build_space
from tests.worker.search.pictures import device
from tests.zoo import ZOO
from tests.zoo.masking import masked
from tests.zoo.running import difference, folded, outputs
from worker.graph.picture import draw
from worker.graph.slicing import Slicer

EXAMPLES = 24  # of each of 24 networks: 576 assignments
TOLERANCE = 1e-4
MULTIPLES = (1, 2, 4, 8)


def keeps(graph: ModelGraph, profile: DeviceProfile) -> st.SearchStrategy[dict[str, list[int]]]:
    """Draw, for every channel group, a count legal on the device and which channels those are."""
    choices = build_space(graph, profile).keep

    def chosen(group: str, channels: int) -> st.SearchStrategy[list[int]]:
        counts = st.sampled_from(choices[group])
        return counts.flatmap(lambda n: st.permutations(range(channels)).map(lambda order: sorted(order[:n])))

    return st.fixed_dictionaries({group.id: chosen(group.id, group.channels) for group in graph.prunable})


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_network_when_sliced_then_equals_the_masked_one_with_constants_folded(name: str, data: st.DataObject) -> None:
    module, plan = folded(name)
    graph = draw(module, plan)
    profile = device(multiple=data.draw(st.sampled_from(MULTIPLES)))
    kept = data.draw(keeps(graph, profile))
    sliced = Slicer(module, plan).sliced(kept)
    for batch in (1, 3):
        inputs = ZOO[name].inputs(batch)
        wanted = outputs(masked(module, plan, kept, ZOO[name]), inputs)
        assert difference(outputs(sliced, inputs), wanted) < TOLERANCE


@pytest.mark.parametrize("multiple", MULTIPLES)
@pytest.mark.parametrize("name", ZOO)
def test_network_when_sliced_on_a_device_then_widths_are_multiples_or_untouched(name: str, multiple: int) -> None:
    module, plan = folded(name)
    graph = draw(module, plan)
    choices = build_space(graph, device(multiple=multiple)).keep
    groups = {group.id: group for group in graph.groups}
    slicer = Slicer(module, plan)
    for pick in (0, 1, -1):  # full width, one step down, the narrowest
        counts = {name: options[min(pick, len(options) - 1)] for name, options in choices.items()}
        sliced = slicer.sliced({name: range(count) for name, count in counts.items()})
        for layer in graph.layers:
            assert _rows(sliced, layer.name) == layer.out_width.kept(counts)
            for group, columns in layer.out_width.terms:
                is_narrow = groups[group].channels < 2 * multiple
                assert counts[group] == groups[group].channels or counts[group] * columns % multiple == 0 or is_narrow


def _rows(network: fx.GraphModule, layer: str) -> int:
    """Return the output features of a layer, or of one matrix ("node.matrix") of a recurrent layer."""
    node, _, matrix = layer.partition(".")
    leaf: Any = network.get_submodule(node)
    if matrix:
        return int(getattr(leaf.core, matrix).shape[0])
    return int(getattr(leaf, "out_features", None) or leaf.out_channels)


def test_slicing_when_the_constant_is_read_without_padding_then_it_is_in_the_readers_bias() -> None:
    module, plan = folded("lenet")
    sliced = Slicer(module, plan).sliced({"fc1": [0, 1, 2]})
    full, cut = module.get_submodule("fc2"), sliced.get_submodule("fc2")
    left_behind = torch.sigmoid(module.get_submodule("fc1").bias[3:])  # type: ignore[index]
    wanted = full.bias + full.weight[:, 3:] @ left_behind  # type: ignore[operator,index]
    assert torch.allclose(cut.bias, wanted, atol=1e-6)  # type: ignore[arg-type]
    assert not torch.allclose(cut.bias, full.bias, atol=1e-3)  # type: ignore[arg-type]


def test_groups_when_channels_are_shuffled_then_each_goes_by_itself() -> None:
    _, plan = folded("shufflenet_v2")
    assert all(len(group.producers) == 1 for group in plan.groups if group.id.startswith("blocks_1_body_5"))
    assert sum(group.channels for group in plan.groups if group.producers == ("blocks_1_body_5",)) == 8
