"""Datasets: what is read, what is refused and by which name, how rows are split."""

from __future__ import annotations

import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from app.domain.graph import Port
from worker import data
from worker.data import Dataset, DatasetRefused, DatasetSpec, check_against, read_dataset, role_data, save_npz, split

X = np.arange(10 * 3 * 4 * 4, dtype=np.uint8).reshape(10, 3, 4, 4)
Y = np.arange(10)
SLUGS = {
    *("invalid-dataset", "unrecognised-format", "unsafe-format", "dataset-too-large"),
    *("invalid-safetensors", "header-too-large", "trailing-data", "duplicate-tensor"),
    *("invalid-archive", "compressed-entry", "overlapping-entries", "unsupported-format"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "set"


def npz(path: Path, **arrays: Any) -> Path:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return path


def refused(path: Path, spec: DatasetSpec = DatasetSpec()) -> DatasetRefused:
    with pytest.raises(DatasetRefused) as caught:
        read_dataset(path, spec)
    return caught.value


def test_read_when_npz_then_rows_labels_and_shape(path: Path) -> None:
    found = read_dataset(npz(path, x=X, y=Y), DatasetSpec())
    whole = {"rows": 10, "shape": [3, 4, 4], "dtype": "uint8", "has_labels": True, "classes": 10}
    assert found.info() == {**whole, "inputs": {"x": {"shape": [3, 4, 4], "stored": [3, 4, 4], "dtype": "uint8"}}}
    assert np.array_equal(found.arrays["x"], X)


def test_read_when_safetensors_then_the_same_arrays(path: Path) -> None:
    path.write_bytes(save({"x": X, "y": Y}))
    found = read_dataset(path, DatasetSpec())
    assert np.array_equal(found.arrays["x"], X)
    assert found.labels is not None and np.array_equal(found.labels, Y)


def test_read_when_saved_by_save_npz_then_the_same_arrays(path: Path) -> None:
    save_npz(path, X, None)
    assert read_dataset(path, DatasetSpec()).labels is None


def test_tensor_when_scale_mean_and_std_are_given_then_normalised_per_channel(path: Path) -> None:
    spec = DatasetSpec("NCHW", 1 / 255, (0.1, 0.2, 0.3), (0.5, 0.25, 1.0))
    found = read_dataset(npz(path, x=X), spec).tensor("x", np.array([2, 5])).numpy()
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (spec.mean, spec.std))
    assert np.allclose(found, (X[[2, 5]] / 255 - mean) / std, atol=1e-6)


def test_tensor_when_nhwc_then_channels_move_first() -> None:
    found = Dataset({"x": X.transpose(0, 2, 3, 1)}, None, DatasetSpec("NHWC")).tensor().numpy()
    assert np.array_equal(found, X.astype(np.float32))


def test_tensor_when_pictures_have_no_channel_then_one_is_added() -> None:
    assert Dataset({"x": X[:, 0]}, None, DatasetSpec("NHW")).input_shape() == (1, 4, 4)


def test_spec_when_read_from_json_then_missing_fields_have_defaults() -> None:
    assert DatasetSpec.from_json({"role": "all", "mean": None, "scale": None}) == DatasetSpec()
    assert DatasetSpec.from_json({"layout": "NHWC", "scale": 0.5, "std": [2]}) == DatasetSpec("NHWC", 0.5, (), (2,))


def test_read_when_big_endian_then_converted(path: Path) -> None:
    found = read_dataset(npz(path, x=X.astype(">f4")), DatasetSpec())
    assert np.array_equal(found.tensor().numpy(), X.astype(np.float32))


@pytest.mark.parametrize(
    ("arrays", "pointer", "code"),
    [
        ({"y": Y}, "/x", "missing"),
        ({"one": X, "two": X[:9]}, "/one", "shape"),
        ({"one": X, "two": X.astype(complex)}, "/two", "dtype"),
        ({"x": X[:0]}, "/x", "shape"),
        ({"x": X.reshape(-1)}, "/x", "shape"),
        ({"x": X.astype(complex)}, "/x", "dtype"),
        ({"x": X.astype(bool)}, "/x", "dtype"),
        ({"x": np.array(["a", "b"]).reshape(2, 1)}, "/x", "dtype"),
        ({"x": X, "y": Y[:9]}, "/y", "shape"),
        ({"x": X, "y": Y[:, None]}, "/y", "shape"),
        ({"x": X, "y": Y * 1.0}, "/y", "dtype"),
        ({"x": X, "y": Y - 1}, "/y/0", "out-of-range"),
        ({"x": X, "y": np.where(Y == 4, 2**63, Y.astype(np.uint64))}, "/y/4", "out-of-range"),
    ],
)
def test_read_when_arrays_are_unusable_then_the_place_is_named(
    path: Path, arrays: dict[str, Any], pointer: str, code: str
) -> None:
    error = refused(npz(path, **arrays))
    assert (error.slug, error.errors[0]["pointer"], error.errors[0]["code"]) == ("invalid-dataset", pointer, code)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_read_when_a_row_is_not_finite_then_the_first_one_is_named(path: Path, value: float) -> None:
    x = X.astype(np.float64)
    x[3:5, 1, 2, 2] = value
    error = refused(npz(path, x=x))
    assert error.errors[0]["pointer"] == "/x/3"
    assert "row 3" in error.detail


def test_read_when_objects_are_stored_then_unsafe_and_nothing_is_unpickled(path: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    error = refused(npz(path, x=np.array([Payload()] * 3, dtype=object)))
    assert error.slug == "unsafe-format"
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("spec", "pointer"),
    [
        (DatasetSpec(mean=(0.5, 0.5)), "/spec/mean"),
        (DatasetSpec(std=(1.0, 1.0, 1.0, 1.0)), "/spec/std"),
        (DatasetSpec(std=(0.0,)), "/spec/std"),
        (DatasetSpec(scale=float("inf")), "/spec/scale"),
        (DatasetSpec(mean=(float("nan"),)), "/spec/mean"),
    ],
)
def test_read_when_the_normalisation_is_unusable_then_refused(path: Path, spec: DatasetSpec, pointer: str) -> None:
    assert refused(npz(path, x=X), spec).errors[0]["pointer"] == pointer


def test_read_when_three_means_meet_one_channel_then_refused_rather_than_broadcast(path: Path) -> None:
    error = refused(npz(path, x=X[:, :1]), DatasetSpec(mean=(0.1, 0.2, 0.3)))
    assert error.errors[0]["pointer"] == "/spec/mean"


def test_read_when_layout_does_not_fit_then_refused(path: Path) -> None:
    assert refused(npz(path, x=X.reshape(10, -1)), DatasetSpec("NHWC")).errors[0]["pointer"] == "/spec/layout"


def test_read_when_expanded_size_exceeds_the_cap_then_too_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MAX_EXPANDED", 1000)
    assert refused(npz(path, x=np.zeros((100, 3, 4, 4), np.uint8))).slug == "dataset-too-large"


def header(shape: str, dtype: str = "|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "member",
    [
        ("x.npy", header("(1099511627776, 4)")),
        ("x.npy", header("(-4, 4)") + bytes(16)),
        ("x.npy", header("('a', 4)") + bytes(16)),
        ("x.npy", header("(4, 4)") + bytes(15)),
        ("x.npy", b"\x93NUMPY\x01"),
        ("x", b"not an array"),
    ],
)
def test_read_when_a_member_lies_about_itself_then_refused(path: Path, member: tuple[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(*member)
        archive.writestr("z.npy", header("(1,)") + b"\0")
    assert refused(path).slug == "invalid-dataset"


def test_read_when_the_header_asks_for_objects_then_unsafe(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header("(4, 4)", "|O") + bytes(128))
    assert refused(path).slug == "unsafe-format"


@pytest.mark.parametrize("content", [b"", b"PK", b"hello world, this is text", b"\x80\x02}q\x00.", bytes(64)])
def test_read_when_the_format_is_unknown_then_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert refused(path).slug in ("unrecognised-format", "invalid-dataset")


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_read_when_bytes_are_damaged_then_read_or_refused_by_name(path: Path, kind: str) -> None:
    whole = save({"x": X, "y": Y}) if kind == "safetensors" else npz(path, x=X, y=Y).read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 2, 8])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        try:
            read_dataset(path, DatasetSpec())
        except DatasetRefused as error:
            assert error.slug in SLUGS


def test_check_against_when_shapes_differ_then_refused() -> None:
    with pytest.raises(DatasetRefused, match=r"\(3, 4, 4\).*\(1, 28, 28\)"):
        check_against(Dataset({"x": X}, Y, DatasetSpec()), (Port("x", (1, 28, 28)),), 10)


def test_check_against_when_a_label_has_no_output_then_the_row_is_named() -> None:
    with pytest.raises(DatasetRefused) as caught:
        check_against(Dataset({"x": X}, Y, DatasetSpec()), (Port("x", (3, 4, 4)),), 8)
    assert caught.value.errors[0]["pointer"] == "/y/8"


def test_check_against_when_all_fits_then_silent() -> None:
    check_against(Dataset({"x": X}, Y, DatasetSpec()), (Port("x", (3, 4, 4)),), 10)
    check_against(Dataset({"x": X}, None, DatasetSpec()), (Port("x", (3, 4, 4)),), None)


def many(rows: int, classes: int) -> Dataset:
    return Dataset({"x": np.zeros((rows, 2), np.uint8)}, np.arange(rows) % classes, DatasetSpec())


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 400), st.integers(1, 60), st.integers(0, 99))
def test_split_when_any_size_then_a_partition_with_20_40_40_shares(rows: int, classes: int, seed: int) -> None:
    found = split(many(rows, classes), seed)
    assert sorted(np.concatenate(list(found.values())).tolist()) == list(range(rows))
    for role, share in (("calibration", 0.2), ("evaluation", 0.4), ("holdout", 0.4)):
        assert abs(len(found[role]) - share * rows) < 1.25  # type: ignore[index]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 99))
def test_split_when_labelled_then_each_label_is_shared_out_evenly(classes: int, seed: int) -> None:
    dataset = many(40 * classes, classes)
    for role, share in (("calibration", 8), ("evaluation", 16), ("holdout", 16)):
        assert dataset.labels is not None
        counts = np.bincount(dataset.labels[split(dataset, seed)[role]], minlength=classes)  # type: ignore[index]
        assert np.abs(counts - share).max() <= 2


def test_split_when_seeded_alike_then_equal_and_otherwise_not() -> None:
    first, again, other = (split(many(100, 10), seed) for seed in (1, 1, 2))
    assert all(np.array_equal(first[role], again[role]) for role in first)
    assert not np.array_equal(first["holdout"], other["holdout"])


def test_split_when_there_are_no_labels_then_rows_are_mixed() -> None:
    found = split(Dataset({"x": np.zeros((1000, 2), np.uint8)}, None, DatasetSpec()), 0)
    assert abs(found["calibration"].mean() - 499.5) < 60


def test_split_when_fewer_than_five_rows_then_refused() -> None:
    with pytest.raises(DatasetRefused, match="4 rows"):
        split(many(4, 2), 0)


def test_role_data_when_rows_are_given_then_inputs_and_labels_match() -> None:
    found = role_data(Dataset({"x": X}, Y, DatasetSpec()), (Port("x", (3, 4, 4)),), np.array([7, 2]))
    assert found.labels is not None and found.labels.tolist() == [7, 2]
    assert np.array_equal(found.inputs[0].numpy(), X[[7, 2]].astype(np.float32))
    assert len(found.head(1)) == 1


def test_read_when_every_pixel_has_a_class_then_labels_are_maps_and_255_is_none(tmp_path: Path) -> None:
    labels = np.zeros((10, 4, 4), np.uint8)
    labels[0, 0], labels[1, 0] = 255, 3
    np.savez(tmp_path / "d.npz", x=np.ones((10, 3, 4, 4), np.uint8), y=labels)
    found = read_dataset(tmp_path / "d.npz", DatasetSpec())
    assert found.info()["classes"] == 4 and found.info()["label_shape"] == [4, 4]
    assert {role: len(rows) for role, rows in split(found, 0).items()} == {
        "calibration": 2,
        "evaluation": 4,
        "holdout": 4,
    }
    np.savez(tmp_path / "e.npz", x=np.ones((10, 3, 4, 4), np.uint8), y=labels.reshape(10, 16))
    with pytest.raises(DatasetRefused, match="one class for every pixel"):
        read_dataset(tmp_path / "e.npz", DatasetSpec())
