"""The command line where no service is needed: usage, start-up, requests, datasets."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from app.cli import app
from app.commands.datamake import guess_layout, parse_size
from app.commands.keys import moment_of
from app.commands.searches import Request, merged, parse_stop, read_request
from app.commands.show import best_line, quality_columns, quality_rows, search_summary

ROOT = Path(__file__).resolve().parents[2]
VERBS = [
    "model push", "model weights", "model list", "model show", "data make", "data push", "data list", "device list",
    "device push", "device show", "search run", "search watch", "search show", "search list", "search cancel",
    "candidate show", "candidate export", "artefact get", "apply", "key create", "key list", "key revoke",
]  # fmt: skip


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("TIGHTFIT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("TIGHTFIT_KEY", "tf_none")
    monkeypatch.setattr("app.client._RETRIES", 1)
    return CliRunner()


@pytest.mark.parametrize("verb", VERBS)
def test_verb_when_asked_for_help_then_offers_json(runner: CliRunner, verb: str) -> None:
    result = runner.invoke(app, [*verb.split(), "--help"])
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_list_when_no_service_answers_then_leaves_with_1_and_a_named_problem(runner: CliRunner) -> None:
    result = runner.invoke(app, ["model", "list", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["problem"]["slug"] == "unreachable"


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "run", "--model", "m", "--data", "d", "--device", "x", "--limit", "speed<=1"],
        ["search", "run", "--model", "m", "--data", "d", "--device", "x"],
        ["search", "run", "--model", "m", "--device", "x", "--limit", "bops<=1/8"],
        ["model", "push", "absent.onnx"],
        ["apply", "absent.yaml", "--model", "absent.onnx", "--data", "absent.npz"],
        ["model", "weights", "net", "absent.safetensors"],
        ["model", "frobnicate"],
        ["search", "run", "--trials", "0"],
        ["search", "run", "--opset", "12"],
        ["candidate", "export", "cnd_1", "--opset", "22"],
    ],
)
def test_verb_when_used_wrongly_then_leaves_with_2(runner: CliRunner, arguments: list[str]) -> None:
    assert runner.invoke(app, arguments).exit_code == 2


def test_apply_when_run_then_the_workers_program_answers_in_its_place(tmp_path: Path) -> None:
    for name in ("c.yaml", "net.onnx", "data.npz"):
        (tmp_path / name).write_text("format: other")
    command = [sys.executable, "-c", "from app.cli import main; main()", "apply", str(tmp_path / "c.yaml")]
    command += ["--model", str(tmp_path / "net.onnx"), "--data", str(tmp_path / "data.npz"), "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert json.loads(result.stdout)["problem"]["slug"] == "invalid-config"


def test_cli_when_started_then_neither_torch_nor_the_service_is_imported() -> None:
    heavy = ("torch", "numpy", "fastapi", "sqlalchemy", "pydantic", "rich", "httpx", "yaml")
    code = f"import app.cli, sys; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_request_when_options_and_file_meet_then_options_win(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(
        "name: nightly\nmodel: a\ndata: {calibration: c, evaluation: e, holdout: h}\ndevice: d\n"
        "limits: ['bops<=1/16', {metric: latency_ms, max: 2}]\nsearch: {trials: 10, seed: 3}\nspace: {min_keep: 0.25}\n"
    )
    names = read_request(Request(file=file, device="esp32s3", trials=60))
    assert (names.model, names.device) == ("a", "esp32s3")
    assert names.data == {"calibration": "c", "evaluation": "e", "holdout": "h"}
    assert names.rest == {
        "name": "nightly",
        "limits": [{"metric": "bops", "relative": 0.0625}, {"metric": "latency_ms", "max": 2}],
        "search": {"trials": 60, "seed": 3},
        "space": {"min_keep": 0.25},
    }


def test_request_when_an_opset_is_named_then_over_the_files_and_else_as_the_file_says() -> None:
    assert merged({"export": {"opset": 15}}, Request(opset=17))["export"] == {"opset": 17}
    assert merged({"export": {"opset": 15}}, Request())["export"] == {"opset": 15}
    assert "export" not in merged({}, Request())


def test_request_when_a_front_is_asked_for_then_its_axes_are_a_list() -> None:
    body = merged({"search": {"trials": 9}}, Request(goal="front", axes="kl, bops", patience=8, growth=0.05))
    assert body["search"] == {
        "trials": 9,
        "stop": {"patience": 8, "growth": 0.05},
        "goal": "front",
        "axes": ["kl", "bops"],
    }


def test_stop_when_written_as_options_then_the_rules() -> None:
    assert parse_stop(None, None) is None
    assert parse_stop(5, None) == {"patience": 5}
    assert parse_stop(5, None, 0.02) == {"patience": 5, "growth": 0.02}
    assert parse_stop(None, "kl<=0.05") == {"patience": None, "target": {"metric": "kl", "value": 0.05}}
    assert parse_stop(3, "accuracy >= 0.9")["target"] == {"metric": "accuracy", "value": 0.9}  # type: ignore[index]
    for wrong in ("accuracy<=0.9", "kl>=1", "accuracy", "accuracy>=much"):
        with pytest.raises(ValueError):
            parse_stop(None, wrong)


def test_space_when_written_as_options_then_rules_by_pattern() -> None:
    request = Request(
        min_keeps=["stage1*=0.5", "head=1/4"], max_keeps=["*=75%"], bits=["head=w8, w4,a8", "stem=w8"], first_last=8
    )
    body = merged({"space": {"freeze": ["stem"], "first_last": 4}}, request)
    assert body["space"] == {
        "freeze": ["stem"],
        "min_keeps": {"stage1*": 0.5, "head": 0.25},
        "max_keeps": {"*": 0.75},
        "bits": {"head": {"weight": [8, 4], "activation": [8]}, "stem": {"weight": [8]}},
        "first_last": 8,
    }
    assert merged({"polish": True}, Request(polish=False))["polish"] is False
    assert "polish" not in merged({}, Request())
    for wrong in ({"bits": ["head"]}, {"bits": ["head=8"]}, {"max_keeps": ["head=half"]}, {"min_keeps": ["=0.5"]}):
        with pytest.raises(ValueError, match=r"is no rule|names no widths|no keep ratio"):
            merged({}, Request(**wrong))  # type: ignore[arg-type]


def test_quality_when_written_as_options_then_a_bound_on_its_metric() -> None:
    def quality(**options: object) -> object:
        return merged({"quality": {"max_drop": 0.5}}, Request(**options))["quality"]  # type: ignore[arg-type]

    assert quality() == {"max_drop": 0.5}
    assert quality(max_drop=0.02) == {"max_drop": 0.02}
    assert quality(min_accuracy=0.9) == {"max_drop": 0.5, "metric": "accuracy", "min": 0.9}
    assert quality(quality="miou>=0.6") == {"max_drop": 0.5, "metric": "miou", "min": 0.6}
    assert merged({}, Request(quality="mse<=0.01", metric="mse"))["quality"] == {"metric": "mse", "max": 0.01}
    assert merged({"metric": "kl"}, Request(metric="cosine"))["metric"] == "cosine"
    for wrong in ("miou<=0.6", "bleu>=1", "kl<=small"):
        with pytest.raises(ValueError, match=r"bound|metric|number"):
            merged({}, Request(quality=wrong))


def test_quality_when_told_then_by_the_searchs_metric() -> None:
    best = {"metrics": {"accuracy": 0.9, "miou": 0.5, "kl": 0.1}}
    told = [best_line({"metric": name, "best": best}) for name in ("accuracy", "miou", "kl", "top5", None)]
    assert told == ["best 90.00 %", "best mIoU 50.00 %", "best KL 0.1000", "best 90.00 %", "best 90.00 %"]
    assert best_line({"best": {"metrics": {"kl": 0.1}}}) == "best KL 0.1000"
    candidate = {"metrics": {"metric": "mse", "evaluation": {"mse": 0.25, "kl": 0.1}}}
    names = quality_columns(candidate)
    assert names == ("mse", "accuracy", "agreement", "kl")
    assert quality_rows(candidate, names)[0] == ("evaluation", "0.25", "–", "–", "0.1000")


def test_summary_when_a_search_has_ended_then_says_what_trials_ran_on_and_what_to_beware_of() -> None:
    search = {"state": "completed", "outcome": "feasible", "processor": "cuda:0 NVIDIA L4"}
    candidate = {
        "id": "cnd_1",
        "metrics": {"quality": {"metric": "miou", "floor": 0.5, "value": 0.6, "met": True}},
    }
    console = Console(record=True, width=200, file=io.StringIO())
    search_summary(console, {**search, "warnings": ["baseline-is-guessing"]}, candidate)
    text = console.export_text()
    assert "trials ran on cuda:0 NVIDIA L4" in text
    assert "no better than guessing on these labels" in text
    assert "hold-out mIoU 60.00 %, asked for ≥ 50.00 %: kept" in text


def test_request_when_there_are_no_data_then_said_so_and_not_beside_data() -> None:
    request = Request(model="a", device="d", limit=["bops<=1/16"], no_data=True)
    assert read_request(request).data is True
    with pytest.raises(typer.BadParameter, match="name one of them"):
        read_request(dataclasses.replace(request, data="c"))
    with pytest.raises(typer.BadParameter, match="--data is missing"):
        read_request(dataclasses.replace(request, no_data=False))


def test_request_when_the_file_is_a_list_then_is_wrong_usage(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text("- 1\n")
    with pytest.raises(typer.BadParameter, match="not a mapping"):
        read_request(Request(file=file))


def test_data_make_when_given_picture_folders_then_writes_labelled_uint8(runner: CliRunner, tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "in" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (10 + index, 8), (number * 200, index, 7)).save(tmp_path / "in" / name / f"{index}.png")
    out = tmp_path / "out.npz"
    wrong = runner.invoke(app, ["data", "make", str(tmp_path / "in"), "-o", str(out)])
    assert wrong.exit_code == 2
    assert "--size" in wrong.stderr
    result = runner.invoke(app, ["data", "make", str(tmp_path / "in"), "-o", str(out), "--size", "8x6", "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["rows"], record["shape"], record["classes"]) == (6, [6, 8, 3], ["cat", "dog"])
    assert record["spec"] == {"layout": "NHWC", "scale": 1 / 255}
    with np.load(out) as made:
        assert made["x"].dtype == np.uint8
        assert made["y"].tolist() == [0, 0, 0, 1, 1, 1]
        assert made["x"][3:, 0, 0, 0].tolist() == [200, 200, 200]


def test_data_make_when_given_arrays_then_pairs_them_with_labels(runner: CliRunner, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 1, 5, 5), np.float32))
    np.save(tmp_path / "y.npy", np.array([0, 1, 0, 1]))
    np.save(tmp_path / "short.npy", np.array([0]))
    arguments = ["data", "make", str(tmp_path / "x.npy"), "-o", str(tmp_path / "out.npz"), "--json", "--labels"]
    result = runner.invoke(app, [*arguments, str(tmp_path / "y.npy")])
    assert json.loads(result.stdout)["spec"] == {"layout": "NCHW"}
    assert runner.invoke(app, [*arguments, str(tmp_path / "short.npy")]).exit_code == 2


def test_data_make_when_array_holds_objects_then_never_unpickles(runner: CliRunner, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    result = runner.invoke(app, ["data", "make", str(tmp_path / "x.npy"), "-o", str(tmp_path / "o.npz")])
    assert result.exit_code == 2
    assert not (tmp_path / "o.npz").exists()


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((9, 32, 32, 3), "NHWC"),
        ((9, 3, 32, 32), "NCHW"),
        ((9, 1, 8, 8), "NCHW"),
        ((9, 64), "NC"),
        ((9, 28, 28), "NHW"),
        ((9, 2, 128), "NCL"),
    ],
)
def test_layout_when_guessed_then_follows_the_channel_axis(shape: tuple[int, ...], layout: str) -> None:
    assert guess_layout(shape) == layout


def test_size_when_malformed_then_says_how_to_write_it() -> None:
    assert parse_size("32X24") == (32, 24)
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        parse_size("32")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12h", datetime(2026, 5, 1, 22, tzinfo=UTC)),
        ("90d", datetime(2026, 7, 30, 10, tzinfo=UTC)),
        ("2026-12-31", datetime(2027, 1, 1, tzinfo=UTC)),
        ("2026-12-31T12:00:00Z", datetime(2026, 12, 31, 12, tzinfo=UTC)),
        ("2026-12-31T12:00:00+02:00", datetime(2026, 12, 31, 10, tzinfo=UTC)),
    ],
)
def test_end_of_a_key_when_said_then_that_moment(text: str, expected: datetime) -> None:
    assert moment_of(text, datetime(2026, 5, 1, 10, tzinfo=UTC)) == expected


@pytest.mark.parametrize("text", ["", "0d", "7", "d", "-1d", "2026-13-01", "tomorrow", "2026-12-31T12:00:00"])
def test_end_of_a_key_when_no_moment_then_wrong_usage(runner: CliRunner, text: str) -> None:
    result = runner.invoke(app, ["keys", "create", "--expires", text])
    assert result.exit_code == 2 and "--expires" in result.output
