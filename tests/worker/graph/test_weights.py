"""New weights in an old file: the network that comes out is the one the weights were trained in."""

from __future__ import annotations

import io
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from tests.security.tensors import HOSTILE
from tests.worker.graph.models import constants, node, outputs, proto, relative
from tests.worker.graph.nets import NETS, SHAPE, exported, make
from tests.zoo import ZOO
from tests.zoo.sources import CannotExport, Source
from tests.zoo.sources import exported as zoo_file
from worker.graph.errors import NetworkRefused
from worker.graph.read import read_network
from worker.graph.rewrite import fold_batchnorm
from worker.graph.weights import MAX_LISTED, Held, read_weights, replaced


class Tied(nn.Module):
    """An embedding that is the head too, a table that is no weight, positions, a scale and an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("order", torch.arange(4).flip(0))
        self.register_buffer("positions", torch.randn(4, 8), persistent=False)
        self.norm, self.unused = nn.BatchNorm1d(4), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.index_select(self.words(x) + self.positions, 1, self.order)
        return self.head(self.norm(y)) * torch.tensor([2.0] * 10)


def state(net: nn.Module) -> dict[str, Tensor]:
    """Return a state dict with no storage shared."""
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def onnx_of(net: nn.Module, shape: tuple[int, ...] = SHAPE) -> bytes:
    """Return an ONNX file that keeps the state dict's names: nothing in it is folded."""
    buffer = io.BytesIO()
    torch.onnx.export(
        net, (torch.randn(2, *shape),), buffer, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}},
        training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
    )  # fmt: skip
    return buffer.getvalue()


def refusal(data: bytes, weights: dict[str, Tensor]) -> NetworkRefused:
    with pytest.raises(NetworkRefused) as caught:
        read_network(data, weights=save(weights))
    assert caught.value.slug == "weights-mismatch"
    return caught.value


def faults(found: NetworkRefused) -> list[tuple[str, str]]:
    return [(item["code"], item["pointer"]) for item in found.errors]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("write", [exported, onnx_of], ids=["pt2", "onnx"])
def test_network_when_read_with_new_weights_then_equals_the_network_they_came_from(name: str, write) -> None:
    base, again = make(name, seed=1), make(name, seed=2)
    x = torch.randn(3, *SHAPE)
    found = fold_batchnorm(read_network(write(base), weights=save(state(again))))
    assert relative(found(x), again(x)) < 1e-5
    assert relative(found(x), base(x)) > 0.01


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-2), (torch.bfloat16, 1e-1), (torch.float64, 1e-5)])
def test_weights_when_of_another_float_width_then_read_as_float32(dtype: torch.dtype, tolerance: float) -> None:
    again = make("plain", seed=2)
    wide = {name: item.to(dtype) if item.is_floating_point() else item for name, item in state(again).items()}
    found = read_network(exported(make("plain", seed=1)), weights=save(wide))
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    x = torch.randn(3, *SHAPE)
    assert relative(found(x), again(x)) < tolerance


def test_constants_when_folded_from_weights_then_follow_the_new_ones() -> None:
    """exp(scale) * weight is computed while the file is read."""
    held = {**constants(scale=(6, 1), raw=(6, 4), bias=(6,))}
    nodes = [
        node("Exp", ["scale"], ["positive"]),
        node("Mul", ["positive", "raw"], ["w"]),
        node("Gemm", ["x", "w", "bias"], ["z"], transB=1),
    ]
    data = proto(nodes, held, shape=(4,)).SerializeToString()
    fresh = {name: torch.randn(array.shape) for name, array in held.items()}
    x = torch.randn(5, 4)
    wanted = F.linear(x, fresh["scale"].exp() * fresh["raw"], fresh["bias"])
    assert relative(read_network(data, weights=save(fresh))(x), wanted) < 1e-6


def test_tied_weights_when_the_file_holds_one_of_them_then_both_follow() -> None:
    torch.manual_seed(0)
    base, again = Tied().eval(), Tied().eval()
    again.positions = base.positions
    buffer = io.BytesIO()
    shapes = ({0: torch.export.Dim("batch")},)
    x = torch.randint(0, 10, (3, 4))
    torch.export.save(torch.export.export(base, (x,), dynamic_shapes=shapes), buffer)
    fresh = state(again)
    for left_out in ("head.weight", "words.weight"):
        weights = {name: tensor for name, tensor in fresh.items() if name != left_out}
        found = read_network(buffer.getvalue(), weights=save(weights))
        assert relative(found(x), again(x)) < 1e-5, left_out
    neither = {name: tensor for name, tensor in fresh.items() if name not in ("head.weight", "words.weight")}
    assert faults(refusal(buffer.getvalue(), neither)) == [
        ("missing", "/weights/head.weight"),
        ("missing", "/weights/words.weight"),
    ]


def test_integers_when_changed_then_refused_and_when_absent_or_counters_then_not() -> None:
    base = Tied().eval()
    buffer = io.BytesIO()
    x = torch.randint(0, 10, (2, 4))
    torch.export.save(torch.export.export(base, (x,)), buffer)
    fresh = state(base)
    without = {name: item for name, item in fresh.items() if item.is_floating_point() and name != "head.weight"}
    counted = {**without, "norm.num_batches_tracked": torch.tensor(977), "epoch": torch.tensor(3)}
    for weights in (without, counted):
        assert torch.equal(read_network(buffer.getvalue(), weights=save(weights))(x), base(x))
    changed = refusal(buffer.getvalue(), {**without, "order": torch.arange(4)})
    assert faults(changed) == [("changed", "/weights/order")]
    assert faults(refusal(buffer.getvalue(), {**without, "order": torch.zeros(4)})) == [("dtype", "/weights/order")]


def test_names_when_they_differ_then_each_is_told_with_the_reason() -> None:
    fresh = state(make("plain"))
    fresh["hidden.weight"] = fresh["hidden.weight"].reshape(9, -1)
    fresh["head.bias"] = fresh["head.bias"].int()
    fresh["module.one.0.weight"] = fresh.pop("one.0.weight")
    found = refusal(exported(make("plain")), fresh)
    assert faults(found) == [
        ("missing", "/weights/one.0.weight"),
        ("unexpected", "/weights/module.one.0.weight"),
        ("dtype", "/weights/head.bias"),
        ("shape", "/weights/hidden.weight"),
    ]
    assert found.errors[3]["detail"] == "shape [9, 192]; the network's has [16, 108]"
    assert "1 missing (such as 'one.0.weight'), 1 unexpected (such as 'module.one.0.weight')" in found.detail


def test_names_when_many_differ_then_twenty_are_listed_some_of_each_kind_and_all_are_counted() -> None:
    prefixed = {f"module.{name}": tensor for name, tensor in state(make("residual")).items()}
    found = refusal(exported(make("residual")), prefixed)
    codes = [code for code, _ in faults(found)]
    assert codes == ["missing"] * 10 + ["unexpected"] * 10
    assert len(codes) == MAX_LISTED
    assert "27 missing" in found.detail and "27 unexpected" in found.detail


@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_when_the_exporter_folded_batchnorm_then_refused_with_the_advice(tmp_path: Path, dynamo: bool) -> None:
    """A folded convolution keeps its name and shape: only the names beside it tell."""
    net = make("residual")
    path = tmp_path / "net.onnx"
    torch.onnx.export(net, (torch.randn(2, *SHAPE),), str(path), dynamo=dynamo, external_data=False)
    found = refusal(path.read_bytes(), state(net))
    assert {code for code, _ in faults(found)} == {"missing", "unexpected"}
    assert ".pt2" in found.detail and "BatchNorm" in found.detail


def test_onnx_when_an_initializer_only_sets_an_operator_then_it_is_no_weight() -> None:
    held = {**constants(w=(6, 4, 3, 3), b=(6,)), "two": torch.tensor([1.0, 1.0, 2.0, 2.0]).numpy()}
    nodes = [
        node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1]),
        node("Resize", ["y", "", "two"], ["u"], mode="nearest", coordinate_transformation_mode="asymmetric",
             nearest_mode="floor"),
        node("Relu", ["u"], ["z"]),
    ]  # fmt: skip
    model = proto(nodes, held)
    fresh = {"w": torch.randn(6, 4, 3, 3), "b": torch.randn(6)}
    x = torch.randn(2, 4, 8, 8)
    for initializer in model.graph.initializer:
        if initializer.name in fresh:
            initializer.CopyFrom(onnx.numpy_helper.from_array(fresh[initializer.name].numpy(), initializer.name))
    wanted = outputs(model.SerializeToString(), x)
    found = read_network(proto(nodes, held).SerializeToString(), weights=save(fresh))
    assert relative(found(x), wanted) < 1e-5
    assert faults(refusal(proto(nodes, held).SerializeToString(), {"w": fresh["w"]})) == [("missing", "/weights/b")]


@pytest.mark.parametrize("name", HOSTILE)
def test_weights_when_they_break_a_law_of_the_format_then_refused_by_its_name(name: str) -> None:
    made, slug = HOSTILE[name]
    with pytest.raises(NetworkRefused) as caught:
        read_weights(made())
    assert caught.value.slug == slug


def test_weights_when_a_dtype_is_none_of_torch_s_then_refused_by_name() -> None:
    entry = b'{"w":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}'
    with pytest.raises(NetworkRefused) as caught:
        replaced(Held({"w": torch.zeros(1)}, {"w"}), read_weights(len(entry).to_bytes(8, "little") + entry + bytes(8)))
    assert caught.value.slug in ("invalid-safetensors", "weights-mismatch")  # newer libraries know complex numbers


NAMES = st.sampled_from(["a.weight", "a.bias", "b.weight", "b.running_mean", "c"])
SHAPES = st.sampled_from([(2,), (3,), (2, 3), ()])
TENSORS = st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from([torch.float32, torch.float16, torch.int64])))


def made(shapes: dict[str, tuple[tuple[int, ...], torch.dtype]], value: float) -> dict[str, Tensor]:
    return {name: torch.full(shape, value).to(dtype) for name, (shape, dtype) in shapes.items()}


@given(held=TENSORS, new=TENSORS)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_replaced_when_it_does_not_refuse_then_every_weight_is_new_and_nothing_else_moved(held, new) -> None:
    old, fresh = made(held, 1), made(new, 2)
    weights = {name for name, tensor in old.items() if tensor.is_floating_point()}
    fits = weights == {name for name, tensor in fresh.items() if tensor.is_floating_point()} and all(
        held[name][0] == new[name][0] for name in weights
    )
    fits = fits and not any(name in old and name not in weights for name in new)  # integers are 1 here and 2 there
    if not fits:
        with pytest.raises(NetworkRefused):
            replaced(Held(old, weights), fresh)
        return
    found = replaced(Held(old, weights), fresh)
    assert set(found) == set(old)
    for name, tensor in found.items():
        assert tensor.shape == old[name].shape
        assert bool((tensor == (2 if name in weights else 1)).all())


def outputs_of(found: object) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)  # type: ignore[return-value]


def difference(name: str, data: bytes) -> float:
    """Read a zoo network's file with the weights of another seed; return how far it is from that seed's network."""
    entry = ZOO[name]
    again, x = entry.network(seed=5), entry.inputs(3)
    found = read_network(data, weights=save(state(again)))
    pairs = zip(outputs_of(found(*x)), outputs_of(again(*x)), strict=True)
    return max(relative(got, wanted) for got, wanted in pairs)


@pytest.mark.parametrize("name", ZOO)
def test_zoo_when_an_archive_is_read_with_new_weights_then_equals_their_network(name: str) -> None:
    assert difference(name, zoo_file(name, Source("pt2"))) < 1e-5


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("source", [Source("script", 17), Source("dynamo", 18)], ids=str)
def test_zoo_when_an_onnx_file_is_read_with_new_weights_then_refused_or_equal_but_never_wrong(
    name: str, source: Source
) -> None:
    try:
        data = zoo_file(name, source)
    except CannotExport as error:
        pytest.skip(str(error))
    try:
        assert difference(name, data) < 1e-5
    except NetworkRefused as refusal_:
        assert refusal_.slug == "weights-mismatch"
