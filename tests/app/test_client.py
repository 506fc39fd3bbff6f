"""The client against a small scripted HTTP server: streaming, retries, event streams that break, digests."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.client import ApiProblem, Client, DigestMismatch, export_module, pack_arrays

Answer = tuple[int, dict[str, str], bytes]
Script = Callable[[str, str, dict[str, str], bytes], Answer | None]


def answer(body: object, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(body).encode()


class Server:
    """Answers with what a script says; None breaks the connection. Keeps every request."""

    def __init__(self, script: Script) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = (self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                outer.seen.append(request)
                told = script(*request)
                if told is None:
                    self.close_connection = True
                    return
                status, headers, content = told
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Script], tuple[Server, Client]]]:
    monkeypatch.setattr("app.client._BEAT_S", 0.01)
    monkeypatch.setattr("app.client._POLL_S", 0.02)
    servers: list[Server] = []

    def start(script: Script) -> tuple[Server, Client]:
        servers.append(Server(script))
        return servers[-1], Client(servers[-1].url, "tf_secret")

    yield start
    for server in servers:
        server.http.shutdown()


def test_push_model_when_uploaded_then_streams_with_length_key_and_progress(serve, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(700_000)
    (tmp_path / "net.onnx").write_bytes(content)
    states = iter(["inspecting", "ready"])

    def script(method: str, path: str, *_: object) -> Answer:
        state = "inspecting" if method == "POST" else next(states)
        return answer({"id": "mdl_1", "state": state, "name": "net"}, 202 if method == "POST" else 200)

    server, client = serve(script)
    steps: list[tuple[int, int]] = []
    model = client.push_model(tmp_path / "net.onnx", progress=lambda done, total: steps.append((done, total)))
    method, path, headers, body = server.seen[0]
    assert (method, path, model["state"]) == ("POST", "/v1/models?name=net", "ready")
    assert headers["content-length"] == "700000"
    assert headers["authorization"] == "Bearer tf_secret"
    assert len(headers["idempotency-key"]) == 32
    assert body == content
    assert steps == [(262_144, 700_000), (524_288, 700_000), (700_000, 700_000)]


def test_push_model_when_the_reader_refuses_then_raises_its_reason(serve) -> None:
    problem = {"type": "/problems/unsupported-operator", "detail": "Loop", "errors": [{"pointer": "/node/3"}]}

    def script(method: str, *_: object) -> Answer:
        return answer({"id": "mdl_1", "state": "rejected" if method == "GET" else "inspecting", "problem": problem})

    _, client = serve(script)
    with pytest.raises(ApiProblem) as caught:
        client.push_model(b"x", "net")
    assert (caught.value.slug, caught.value.detail) == ("unsupported-operator", "Loop")
    assert caught.value.errors == [{"pointer": "/node/3"}]


def test_push_weights_when_uploaded_then_sent_to_the_base_and_the_new_model_comes_back(serve, tmp_path: Path) -> None:
    (tmp_path / "epoch9.safetensors").write_bytes(b"w" * 30)
    made = {"id": "mdl_2", "name": "net", "base_id": "mdl_1"}

    def script(method: str, path: str, *_: object) -> Answer:
        return answer(
            {**made, "state": "inspecting" if method == "POST" else "ready"}, 202 if method == "POST" else 200
        )

    server, client = serve(script)
    assert client.push_weights("mdl_1", tmp_path / "epoch9.safetensors") == {**made, "state": "ready"}
    client.push_weights("mdl_1", b"w" * 30, "net 9", wait=False)
    sent = [(method, path, body) for method, path, _, body in server.seen]
    assert sent == [
        ("POST", "/v1/models/mdl_1/weights", b"w" * 30),
        ("GET", "/v1/models/mdl_2", b""),
        ("POST", "/v1/models/mdl_1/weights?name=net+9", b"w" * 30),
    ]


def test_post_when_the_connection_breaks_then_is_retried_under_the_same_key(serve) -> None:
    attempts: list[str] = []

    def script(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        attempts.append(headers["idempotency-key"])
        return None if len(attempts) < 3 else answer({"id": "srh_1"}, 202)

    _, client = serve(script)
    assert client.create_search({"name": "x"})["id"] == "srh_1"
    assert len(attempts) == 3
    assert len(set(attempts)) == 1


def test_problem_when_refused_then_carries_slug_status_and_extra_figures(serve) -> None:
    body = {
        "type": "https://tightfit.dev/problems/budget-unreachable",
        "title": "Budget unreachable",
        "status": 422,
        "detail": "bops can't go below 10",
        "reachable": {"bops": 10},
        "binding": ["bops"],
    }
    _, client = serve(lambda *_: answer(body, 422))
    with pytest.raises(ApiProblem) as caught:
        client.create_search({})
    assert (caught.value.slug, caught.value.status) == ("budget-unreachable", 422)
    assert caught.value.extra == {"reachable": {"bops": 10}, "binding": ["bops"]}


def test_problem_when_the_body_is_no_json_then_the_status_is_told(serve) -> None:
    _, client = serve(lambda *_: (502, {}, b"<html>"))
    with pytest.raises(ApiProblem) as caught:
        client.get("/v1/models")
    assert (caught.value.slug, caught.value.status) == ("http-502", 502)


def test_items_when_paged_then_follows_the_cursor(serve) -> None:
    pages = {
        "": {"items": [{"id": 1}, {"id": 2}], "next_cursor": "b"},
        "b": {"items": [{"id": 3}], "next_cursor": None},
    }

    def script(method: str, path: str, *_: object) -> Answer:
        return answer(pages[httpx.URL(path).params.get("cursor", "")])

    server, client = serve(script)
    assert [item["id"] for item in client.items("/v1/models")] == [1, 2, 3]
    assert len(server.seen) == 2


@pytest.mark.parametrize("stream", ["whole", "broken", "refused"])
def test_watch_when_the_event_stream_misbehaves_then_still_sees_the_end(serve, stream: str) -> None:
    states = iter(["queued", "running", "running", "completed"])

    def script(method: str, path: str, *_: object) -> Answer | None:
        if not path.endswith("/events"):
            return answer({"id": "srh_1", "state": next(states)})
        events = b": hello\n\nid: 1\nevent: stage\ndata: {}\n\nid: 2\ndata: {}\n\n"
        if stream == "whole":
            return 200, {"Content-Type": "text/event-stream"}, events
        return None if stream == "broken" else answer({"detail": "no"}, 503)

    _, client = serve(script)
    seen = [search["state"] for search in client.watch("srh_1")]
    assert seen == ["queued", "running", "completed"]


def test_watch_when_the_stream_ends_early_then_goes_on_after_the_last_event(serve) -> None:
    states = iter(["running"] * 4 + ["completed"])

    def script(method: str, path: str, *_: object) -> Answer:
        if path.endswith("/events"):
            return 200, {"Content-Type": "text/event-stream"}, b"id: 7\ndata: {}\n\n"
        return answer({"id": "srh_1", "state": next(states)})

    server, client = serve(script)
    assert client.wait_search("srh_1")["state"] == "completed"
    asked = [headers.get("last-event-id") for _, path, headers, _ in server.seen if path.endswith("/events")]
    assert asked == [None, "7"]


def test_download_when_the_digest_is_right_then_the_file_is_there(serve, tmp_path: Path) -> None:
    content = b"network" * 100_000
    meta = {"id": "art_1", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def script(method: str, path: str, *_: object) -> Answer:
        return (200, {}, content) if path.endswith("/content") else answer(meta)

    _, client = serve(script)
    steps: list[int] = []
    path = client.download("art_1", tmp_path / "out" / "net.onnx", lambda done, _: steps.append(done))
    assert path.read_bytes() == content
    assert steps[-1] == 700_000


def test_download_when_the_digest_is_wrong_then_no_file_is_left(serve, tmp_path: Path) -> None:
    def script(method: str, path: str, *_: object) -> Answer:
        return (200, {}, b"evil") if path.endswith("/content") else answer({"bytes": 4, "sha256": "00"})

    _, client = serve(script)
    with pytest.raises(DigestMismatch, match="expected sha256 00"):
        client.download("art_1", tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_key_when_the_service_is_elsewhere_then_the_local_key_stays_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "api_key").write_text("tf_local\n")
    monkeypatch.setenv("TIGHTFIT_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("TIGHTFIT_KEY", raising=False)
    monkeypatch.delenv("TIGHTFIT_URL", raising=False)
    assert "Authorization" not in Client("https://example.org")._http.headers
    assert Client("http://127.0.0.1:9999")._http.headers["Authorization"] == "Bearer tf_local"


def test_pack_arrays_when_labels_are_missing_then_holds_x_alone() -> None:
    with np.load(io.BytesIO(pack_arrays({"x": np.arange(6).reshape(2, 3), "y": None}))) as packed:
        assert packed.files == ["x"]
        assert packed["x"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_export_module_when_given_one_example_then_keeps_the_batch_dynamic() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.ReLU()).train()
    data = export_module(module, (torch.zeros(1, 1, 8, 8),))
    program = torch.export.load(io.BytesIO(data))
    assert module.training
    assert program.module()(torch.zeros(5, 1, 8, 8)).shape == (5, 2, 6, 6)
