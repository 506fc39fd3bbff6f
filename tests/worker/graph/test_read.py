"""Both readers, the writer, folding and slicing: equal outputs, equal costs, nothing executed."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, fx

from app.domain.graph import ModelGraph
from tests.worker.graph.nets import NETS, SHAPE, Pictures, exported, make
from tests.zoo.masking import masked
from worker.graph.errors import NetworkRefused
from worker.graph.extents import inputs_of
from worker.graph.groups import ChannelPlan, channel_plan
from worker.graph.picture import draw
from worker.graph.read import read_network
from worker.graph.rewrite import fold_batchnorm
from worker.graph.sites import quantizer_sites
from worker.graph.slicing import Slicer
from worker.graph.write_onnx import write_float


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max())


def folded(name: str) -> tuple[fx.GraphModule, ChannelPlan]:
    module = fold_batchnorm(read_network(exported(make(name))))
    return module, channel_plan(module)


def onnx_outputs(data: bytes, x: Tensor) -> Tensor:
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_pt2_when_read_then_outputs_equal_the_source_at_batch_1_and_7(name: str, dynamic: bool) -> None:
    net = make(name)
    module = read_network(exported(net, dynamic), "pt2")
    assert inputs_of(module)[0].shape == SHAPE
    for batch in (1, 7):
        x = torch.randn(batch, *SHAPE)
        assert relative(module(x), net(x)) < 1e-5


@pytest.mark.parametrize("name", NETS)
def test_onnx_when_written_and_read_again_then_outputs_equal_in_torch_and_onnxruntime(name: str) -> None:
    net = make(name)
    data = write_float(fold_batchnorm(read_network(exported(net))))
    again = read_network(data, "onnx")
    for batch in (1, 7):
        x = torch.randn(batch, *SHAPE)
        assert relative(onnx_outputs(data, x), net(x)) < 1e-5
        assert relative(again(x), net(x)) < 1e-5


@pytest.mark.parametrize("name", ["lenet5bn_mnist", "resnet8_cifar10", "vgg7_cifar10", "efficientnet_lite0_imagenet"])
def test_reference_network_when_read_then_outputs_equal_onnxruntime(name: str, shared_data: Path) -> None:
    data = (shared_data / "models" / f"{name}.onnx").read_bytes()
    module = read_network(data)
    shape = inputs_of(module)[0].shape
    x = torch.randn(2 if "efficient" in name else 7, *shape)
    assert relative(module(x), onnx_outputs(data, x)) < 1e-5
    assert relative(fold_batchnorm(module)(x), onnx_outputs(data, x)) < 1e-5


def test_picture_when_drawn_for_lenet_then_macs_are_the_published_ones(shared_data: Path) -> None:
    module = fold_batchnorm(read_network((shared_data / "models" / "lenet5bn_mnist.onnx").read_bytes()))
    graph = draw(module, channel_plan(module))
    assert sum(layer.positions * int(np.prod(layer.weight_shape)) for layer in graph.layers) == 416_520
    assert [(g.id, g.channels, g.frozen) for g in graph.groups if g.frozen] == [
        ("input_0", 1, "network input"),
        ("fc3", 10, "network output"),
    ]


@pytest.mark.parametrize("name", NETS)
def test_picture_when_sent_through_json_then_equal(name: str) -> None:
    module, plan = folded(name)
    graph = draw(module, plan)
    assert ModelGraph.from_json(graph.to_json()) == graph


def test_groups_when_residual_then_the_skip_ties_its_producers() -> None:
    _, plan = folded("residual")
    groups = {group.id: group for group in plan.groups}
    assert groups["stem_0"].producers == ("stem_0", "b_0")
    assert groups["a_0"].producers == ("a_0",)
    assert set(groups["c_0"].producers) == {"c_0", "down_0"}
    assert groups["head"].frozen == "network output"


def test_groups_when_depthwise_then_one_group_spans_it() -> None:
    _, plan = folded("depthwise")
    group = next(g for g in plan.groups if "expand_0" in g.producers)
    assert group.producers == ("expand_0", "depth_0")
    assert group.consumers == ("project_0",)


def test_groups_when_concat_then_each_branch_has_its_own_term() -> None:
    _, plan = folded("concat")
    assert plan.dims[("mix_0", "in")].width.terms == (("stem_0", 1), ("a_0", 1), ("b_0", 1))


def test_groups_when_flattened_then_each_channel_owns_its_positions() -> None:
    _, plan = folded("plain")
    assert plan.dims[("hidden", "in")].width.terms == (("two_0", 9),)


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_network_when_sliced_then_equals_the_masked_one(name: str, data: st.DataObject) -> None:
    module, plan = folded(name)
    graph = draw(module, plan)
    kept = {
        group.id: sorted(data.draw(st.sets(st.integers(0, group.channels - 1), min_size=1))) for group in graph.prunable
    }
    sliced = Slicer(module, plan).sliced(kept)
    x = torch.randn(3, *SHAPE)
    assert relative(sliced(x), masked(module, plan, kept, Pictures())(x)) < 1e-5
    expected = {
        layer.name: layer.out_width.kept({g.id: len(kept.get(g.id, range(g.channels))) for g in graph.groups})
        for layer in graph.layers
    }
    assert {name: sliced.get_submodule(name).weight.shape[0] for name in expected} == expected  # type: ignore[union-attr,index]


def test_sites_when_residual_then_quantizers_stand_behind_fused_relus_and_before_the_add() -> None:
    module, _ = folded("residual")
    sites = {site.id: site for site in quantizer_sites(module).sites}
    assert list(sites) == ["x", "relu", "relu_1", "b_0", "relu_2", "c_0", "down_0", "relu_3", "mean", "head"]
    assert {name for name, site in sites.items() if site.unsigned} == {"relu", "relu_1", "relu_2", "relu_3", "mean"}
    assert sites["x"].role == "input" and sites["head"].role == "output"


class Bomb:
    """Writes a marker when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path(str(self.marker)).touch, ())  # type: ignore[return-value]


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def rewritten(data: bytes, changes: dict[str, bytes]) -> bytes:
    """Return a copy of an archive with entries (matched by their ending) replaced."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for ending, body in changes.items():
        name = next(name for name in entries if name.endswith(ending))
        entries[name] = body
    return zipped(entries)


def entry(data: bytes, ending: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith(ending)))


WEIGHTS = "data/weights/model_weights_config.json"


def hostile(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Return hostile files by name, with the slug each must be refused with."""
    bomb = pickle.dumps(Bomb(marker))
    good = exported(make("plain"))
    return {
        "empty": (b"", "unrecognised-format"),
        "noise": (bytes(range(200, 256)) * 4, "unrecognised-format"),
        "pickle": (bomb, "unsafe-format"),
        "torch zip": (zipped({"archive/data.pkl": bomb, "archive/version": b"3"}), "unsafe-format"),
        "torchscript": (zipped({"m/code/__torch__.py": b"x", "m/constants.pkl": bomb}), "unsafe-format"),
        "pickled weight": (
            rewritten(good, {WEIGHTS: entry(good, WEIGHTS).replace(b'"use_pickle": false', b'"use_pickle": true')}),
            "unsafe-format",
        ),
        "compressed": (zipped({"m/models/model.json": b"{}" * 99}, zipfile.ZIP_DEFLATED), "compressed-entry"),
        "not a program": (zipped({"m/models/model.json": b"[]"}), "invalid-graph"),
        "unknown op": (
            rewritten(
                good,
                {"models/model.json": entry(good, "models/model.json").replace(b"aten.relu.default", b"os.system")},
            ),
            "unsupported-operator",
        ),
        "cut zip": (good[: len(good) // 2], "invalid-archive"),
        "hdf5": (b"\x89HDF\r\n\x1a\n" + b"0" * 64, "unsupported-format"),
    }


@pytest.mark.parametrize("name", list(hostile(Path("unused"))))
def test_hostile_file_when_read_then_refused_by_name_and_nothing_runs(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    data, slug = hostile(marker)[name]
    with pytest.raises(NetworkRefused) as refusal:
        read_network(data)
    assert refusal.value.slug == slug
    assert not marker.exists()


def test_sample_inputs_when_replaced_by_a_payload_then_never_read(tmp_path: Path) -> None:
    net, marker = make("plain"), tmp_path / "marker"
    good = exported(net)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    samples = next(name for name in entries if "sample_inputs" in name)
    module = read_network(zipped({**entries, samples: pickle.dumps(Bomb(marker))}))
    x = torch.randn(2, *SHAPE)
    assert relative(module(x), net(x)) < 1e-5
    assert not marker.exists()


def small_onnx(op: str = "Relu", domain: str = "", external: bool = False) -> bytes:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 3, 1, 1], [0.1] * 12)
    if external:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="../../etc/passwd")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
        helper.make_node(op, ["y"], ["z"], name="last", domain=domain),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4, 4, 4])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


@pytest.mark.parametrize(
    ("data", "slug"),
    [
        (small_onnx(op="NonMaxSuppression"), "unsupported-operator"),
        (small_onnx(op="Relu", domain="com.example"), "unsupported-operator"),
        (small_onnx(external=True), "external-data-refused"),
        (small_onnx()[:60], "invalid-onnx"),
    ],
)
def test_onnx_when_not_readable_then_refused_by_name(data: bytes, slug: str) -> None:
    with pytest.raises(NetworkRefused) as refusal:
        read_network(data)
    assert refusal.value.slug == slug


def test_unsupported_operator_when_refused_then_names_nodes_types_and_counts() -> None:
    with pytest.raises(NetworkRefused) as refusal:
        read_network(small_onnx(op="NonMaxSuppression"))
    assert "NonMaxSuppression (1x)" in refusal.value.detail
    assert refusal.value.errors[0]["pointer"] == "/graph/last"


def legacy_flatten_onnx() -> bytes:
    """Flatten as the older exporter writes it: Shape, Gather, Unsqueeze, Concat, Reshape; MatMul and Add behind it."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(4, 3, 1, 1)).astype(np.float32),
        "zero": np.array(0),
        "minus": np.array([-1]),
        "axes": np.array([0]),
        "m": rng.normal(size=(64, 5)).astype(np.float32),
        "b": rng.normal(size=5).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("Shape", ["y"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "minus"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["y", "sizes"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 5])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString()


def test_onnx_when_flatten_is_shape_arithmetic_then_folded_to_a_flatten_and_a_linear_layer() -> None:
    data = legacy_flatten_onnx()
    module = read_network(data)
    x = torch.randn(7, 3, 4, 4)
    assert relative(module(x), onnx_outputs(data, x)) < 1e-5
    assert [type(leaf).__name__ for leaf in module.children()] == ["Conv2d", "Linear"]
