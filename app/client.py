"""The Python client: push a network and data, run a search, watch it, download what it found.

    client = Client()                                   # url and key from the environment or the data folder
    model = client.push_model("resnet8.onnx")
    search = client.run_search({...})                   # the body of POST /v1/searches
    client.download(search["best"]["artefacts"][0]["id"], "small.onnx")

Answers are the service's JSON objects as dicts. Every refusal raises `ApiProblem`. Nothing here imports torch, but
`push_module`, which runs where the user's module already lives.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from app.apiproblem import ApiProblem as ApiProblem
from app.apiproblem import DigestMismatch as DigestMismatch

Json = dict[str, Any]
Progress = Callable[[int, int], None]
Update = Callable[[Json], None]

CHUNK = 1 << 18
FINISHED = frozenset({"completed", "cancelled", "failed"})
SETTLED = frozenset({"ready", "rejected"})
_BEAT_S = 0.25
_POLL_S = 1.0
_SILENCE_S = 5.0
_RETRIES = 3
_PATIENCE_S = 5.0
_LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})


class Client:
    """A synchronous client of one service.

    `url` and `key` default to TIGHTFIT_URL and TIGHTFIT_KEY, then to what `tightfit serve` left in the data folder.
    `http` replaces the transport (tests hand in one that calls the application directly).
    """

    def __init__(self, url: str | None = None, key: str | None = None, *, http: httpx.Client | None = None) -> None:
        found_url, found_key = _defaults(url, key)
        self.url = found_url.rstrip("/")
        self._http = http or httpx.Client(base_url=self.url, timeout=httpx.Timeout(60.0, connect=5.0))
        if found_key:
            self._http.headers["Authorization"] = f"Bearer {found_key}"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # -- plain requests -------------------------------------------------------------------------------------------

    def get(self, path: str, **params: Any) -> Json:
        """GET a JSON resource."""
        given = {key: value for key, value in params.items() if value is not None}
        return _json(self._send("GET", path, params=given))

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Json:
        """POST a JSON body under a fresh idempotency key, which makes a retry harmless."""
        return _json(self._send("POST", path, json=dict(body or {}), headers={"Idempotency-Key": uuid.uuid4().hex}))

    def delete(self, path: str) -> None:
        """DELETE a resource, whatever its state is."""
        self._send("DELETE", path, headers={"If-Match": "*"})

    def items(self, path: str, **params: Any) -> Iterator[Json]:
        """Yield every item of a list, page after page."""
        cursor: str | None = None
        while True:
            page = self.get(path, cursor=cursor, **params)
            yield from page["items"]
            cursor = page.get("next_cursor")
            if not cursor:
                return

    def find(self, noun: str, name: str) -> Json:
        """Return the newest model, dataset, device, search or candidate with this id or name."""
        try:
            return self.get(f"/v1/{noun}/{name}")
        except ApiProblem as problem:
            if problem.status not in (404, 422):
                raise
            named = [item for item in self.items(f"/v1/{noun}", owner="me") if item.get("name") == name]
            if not named:
                raise
            return max(named, key=lambda item: (item.get("state") == "ready", str(item.get("created_at", ""))))

    # -- networks and data ----------------------------------------------------------------------------------------

    def push_model(
        self,
        source: str | Path | bytes,
        name: str | None = None,
        format: str | None = None,
        progress: Progress | None = None,
        wait: bool = True,
    ) -> Json:
        """Upload an ONNX or torch.export `.pt2` file; wait until the service has read it.

        Raises ApiProblem with the reader's reason when the file is refused.
        """
        default = None if isinstance(source, bytes) else Path(source).stem
        model = self._upload("/v1/models", source, {"name": name or default, "format": format}, progress)
        return self.wait_ready("models", model["id"]) if wait else model

    def push_module(
        self, module: Any, example_inputs: tuple[Any, ...], name: str, progress: Progress | None = None
    ) -> Json:
        """Export a `torch.nn.Module` with torch.export (first dimension of every input dynamic) and upload it.

        The module runs here, on the caller's side; the service only ever reads the exported graph.
        """
        return self.push_model(export_module(module, example_inputs), name, "pt2", progress)

    def push_weights(
        self,
        model_id: str,
        source: str | Path | bytes,
        name: str | None = None,
        progress: Progress | None = None,
        wait: bool = True,
    ) -> Json:
        """Upload new weights of a model, a safetensors file of its state dict; return the new model they make.

        It has the base's name where `name` is None. Raises ApiProblem weights-mismatch, whose `errors` list the names,
        when the file's tensors are not those of the network.
        """
        model = self._upload(f"/v1/models/{model_id}/weights", source, {"name": name}, progress)
        return self.wait_ready("models", model["id"]) if wait else model

    def push_dataset(
        self,
        source: str | Path | bytes | Mapping[str, Any],
        name: str | None = None,
        spec: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        wait: bool = True,
    ) -> Json:
        """Upload an npz or safetensors file, or arrays `{"x": ..., "y": ...}`; wait until the service has read it.

        `spec` declares layout, scale, mean, std, role and split_seed.
        """
        default = Path(source).stem if isinstance(source, str | Path) else "dataset"
        payload = pack_arrays(source) if isinstance(source, Mapping) else source
        headers = {"X-Tightfit-Dataset-Spec": json.dumps(dict(spec))} if spec else {}
        dataset = self._upload("/v1/datasets", payload, {"name": name or default}, progress, headers)
        return self.wait_ready("datasets", dataset["id"]) if wait else dataset

    def refit_device(self, device: str) -> Json:
        """Store the next revision of a profile, scaled to what was measured with it, and return it."""
        return self.post(f"/v1/devices/{device}:refit", {})

    def push_device(self, profile: Mapping[str, Any]) -> Json:
        """Store a device profile and return it with its id and revision."""
        return self.post("/v1/devices", profile)

    def wait_ready(self, noun: str, id: str, timeout_s: float = 300.0) -> Json:
        """Wait until a model or dataset is read. Raises ApiProblem when it was rejected, TimeoutError when too slow."""
        deadline, pause = time.monotonic() + timeout_s, 0.1
        while True:
            item = self.get(f"/v1/{noun}/{id}")
            if item["state"] in SETTLED:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"{id} is still {item['state']} after {timeout_s:.0f} s; is a worker running?")
            time.sleep(pause)
            pause = min(pause * 1.5, _POLL_S)
        if item["state"] == "rejected":
            raise ApiProblem.from_body(item.get("problem") or {"slug": "rejected"}, 422)
        return item

    # -- searches -------------------------------------------------------------------------------------------------

    def create_search(self, body: Mapping[str, Any]) -> Json:
        """Queue a search. Raises ApiProblem `budget-unreachable` when no assignment can keep the limits."""
        return self.post("/v1/searches", body)

    def run_search(self, body: Mapping[str, Any], update: Update | None = None) -> Json:
        """Queue a search and wait for its end; `update` sees every change on the way."""
        return self.wait_search(self.create_search(body)["id"], update)

    def wait_search(self, id: str, update: Update | None = None) -> Json:
        """Wait for the end of a search and return it."""
        last: Json = {}
        for last in self.watch(id):
            if update is not None:
                update(last)
        return last

    def watch(self, id: str) -> Iterator[Json]:
        """Yield the search each time it has changed, until it is finished.

        Listens to the event stream and falls back to polling whenever the stream is silent or breaks.
        """
        seen: Json | None = None
        beats = self._beats(id)
        while True:
            search = self.get(f"/v1/searches/{id}")
            if search != seen:
                yield search
            if search["state"] in FINISHED:
                return
            seen = search
            next(beats)

    def cancel_search(self, id: str) -> Json:
        """Ask a search to stop; trials measured so far are kept."""
        return self.post(f"/v1/searches/{id}/cancel")

    def steer_search(self, id: str, verb: str, body: Mapping[str, Any] | None = None) -> Json:
        """`pause`, `resume`, `extend` (trials, max_wall_s: new totals) or `priority` (1 to 5) a search; return it."""
        return self.post(f"/v1/searches/{id}/{verb}", body)

    def trials(self, id: str) -> list[Json]:
        """Return the trials of a search in order."""
        return list(self.items(f"/v1/searches/{id}/trials"))

    def front(self, id: str) -> list[Json]:
        """Return the Pareto front of a search."""
        return list(self.items(f"/v1/searches/{id}/front"))

    def whatif(self, id: str, limits: list[Json]) -> Json:
        """Return the best a search knows inside other limits, measured and predicted."""
        return self.post(f"/v1/searches/{id}/whatif", {"limits": limits})

    def study(self, id: str) -> str:
        """Return a search as the text of an Optuna journal file."""
        return self._send("GET", f"/v1/searches/{id}/study").text

    def candidates(self, id: str) -> list[Json]:
        """Return the candidates of a search, best first."""
        return list(self.items(f"/v1/searches/{id}/candidates"))

    def why(self, id: str) -> Json:
        """Return what a candidate's time goes to, and the changes that would save most."""
        return self.get(f"/v1/candidates/{id}/why")

    def export_candidate(self, id: str, timeout_s: float = 300.0, opset: int | None = None) -> Json:
        """Export a candidate (checkpoint, ONNX, report) and wait until its verification is known.

        `opset` asks for another ONNX opset than its search did. Raises ApiProblem when the files could not be made,
        TimeoutError when no worker makes them in time.
        """
        candidate = self.post(f"/v1/candidates/{id}/export", None if opset is None else {"opset": opset})
        deadline = time.monotonic() + timeout_s
        while candidate["export_state"] in ("queued", "running"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the export of {id} has not ended after {timeout_s:.0f} s; is a worker running?")
            time.sleep(_POLL_S / 2)
            candidate = self.get(f"/v1/candidates/{id}")
        if candidate["export_state"] == "failed":
            raise ApiProblem.from_body(candidate["problem"] or {"slug": "export-failed"}, 409)
        return candidate

    def report(self, id: str) -> Json:
        """Return the record of a candidate's report as one HTML file, for `download`.

        Raises ApiProblem not-found where the candidate was not exported.
        """
        for artefact in self.get(f"/v1/candidates/{id}")["artefacts"]:
            if artefact["kind"] == "report-html":
                return dict(artefact)
        raise ApiProblem("not-found", 404, f"{id} has no report yet; make one: tightfit candidate export {id}")

    def events(self, after: int = 0) -> Iterator[Json]:
        """Yield all that changes of the owner's objects, from behind number `after` on, without end."""
        while True:
            try:
                for field, value in self._stream("/v1/events", str(after)):
                    if field == "data":
                        event: Json = json.loads(value)
                        after = event["seq"]
                        yield event
            except httpx.ReadTimeout:
                continue
            except httpx.TransportError:
                time.sleep(_POLL_S)

    # -- downloads ------------------------------------------------------------------------------------------------

    def download(self, artefact_id: str, path: str | Path, progress: Progress | None = None) -> Path:
        """Download an artefact to `path` and return the path. Raises DigestMismatch when its SHA-256 is not as told.

        The file appears under its name only when it is whole and checked.
        """
        artefact = self.get(f"/v1/artefacts/{artefact_id}")
        target = Path(path)
        part = target.with_name(target.name + ".part")
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = self._receive(f"/v1/artefacts/{artefact_id}/content", part, int(artefact["bytes"]), progress)
        if digest != artefact["sha256"]:
            part.unlink()
            raise DigestMismatch(f"{artefact_id}: expected sha256 {artefact['sha256']}, received {digest}")
        return part.replace(target)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        for attempt in range(_RETRIES):
            is_last = attempt == _RETRIES - 1
            try:
                response = self._http.request(method, path, **options)
            except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):
                if is_last:
                    raise
                time.sleep(0.2 * 2**attempt)
                continue
            if response.status_code != 429 or is_last:
                break
            time.sleep(_told_to_wait(response))
        if response.is_error:
            raise ApiProblem.from_response(response)
        return response

    def _upload(
        self,
        path: str,
        source: str | Path | bytes,
        params: Mapping[str, Any],
        progress: Progress | None,
        headers: Mapping[str, str] | None = None,
    ) -> Json:
        total = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        sent = {
            "Content-Length": str(total),
            "Content-Type": "application/octet-stream",
            "Idempotency-Key": uuid.uuid4().hex,
        }
        given = {key: value for key, value in params.items() if value is not None}
        content = _chunks(source, total, progress)
        response = self._http.post(path, params=given, content=content, headers={**sent, **(headers or {})})
        if response.is_error:
            raise ApiProblem.from_response(response)
        return _json(response)

    def _receive(self, path: str, target: Path, total: int, progress: Progress | None) -> str:
        digest, done = hashlib.sha256(), 0
        with self._http.stream("GET", path) as response, target.open("wb") as file:
            if response.is_error:
                response.read()
                raise ApiProblem.from_response(response)
            for chunk in response.iter_bytes(CHUNK):
                digest.update(chunk)
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
        return digest.hexdigest()

    def _beats(self, id: str) -> Iterator[None]:
        """Yield whenever it is worth looking at the search again: after an event, or after a while without one."""
        last_id: str | None = None
        while True:
            try:
                for event_id in self._event_ids(id, last_id):
                    last_id = event_id
                    time.sleep(_BEAT_S)
                    yield
                time.sleep(_BEAT_S)
            except httpx.ReadTimeout:
                pass
            except (httpx.TransportError, ApiProblem):
                time.sleep(_POLL_S)
            yield

    def _event_ids(self, id: str, after: str | None) -> Iterator[str]:
        return (value for field, value in self._stream(f"/v1/searches/{id}/events", after) if field == "id")

    def _stream(self, path: str, after: str | None) -> Iterator[tuple[str, str]]:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
        timeout = httpx.Timeout(_SILENCE_S)
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.is_error:
                response.read()
                raise ApiProblem.from_response(response)
            yield from _fields(response.iter_lines())


def export_module(module: Any, example_inputs: tuple[Any, ...]) -> bytes:
    """Return the bytes of a `.pt2` archive of `module` in inference mode, with a dynamic batch dimension."""
    import torch

    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = tuple({0: batch} for _ in example_inputs)
    was_training = module.training
    module.eval()
    # A batch of one would be specialised to the constant 1.
    inputs = tuple(tensor if tensor.shape[0] > 1 else torch.cat([tensor, tensor]) for tensor in example_inputs)
    try:
        with torch.no_grad():
            program = torch.export.export(module, inputs, dynamic_shapes=shapes)
    finally:
        module.train(was_training)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def pack_arrays(arrays: Mapping[str, Any]) -> bytes:
    """Return the bytes of a compressed npz file holding `x` and, if given, `y`."""
    import numpy as np

    buffer = io.BytesIO()
    given: dict[str, Any] = {key: np.asarray(value) for key, value in arrays.items() if value is not None}
    np.savez_compressed(buffer, **given)
    return buffer.getvalue()


def _chunks(source: str | Path | bytes, total: int, progress: Progress | None) -> Iterator[bytes]:
    done = 0
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            done += len(chunk)
            if progress is not None:
                progress(done, total)


def _fields(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Yield the (field, value) lines of an event stream; comments are skipped."""
    for line in lines:
        field, colon, value = line.partition(":")
        if field and colon:
            yield field, value.removeprefix(" ")


def _told_to_wait(response: httpx.Response) -> float:
    """Return the seconds after which the service takes the next request, at most a few."""
    text = response.headers.get("Retry-After", "")
    return min(float(text), _PATIENCE_S) if text.isdigit() else _POLL_S


def _json(response: httpx.Response) -> Json:
    body = response.json() if response.content else {}
    return body if isinstance(body, dict) else {"items": body, "next_cursor": None}


def _defaults(url: str | None, key: str | None) -> tuple[str, str | None]:
    """Fill what the caller left out from the environment, then from the data folder of a local service.

    The local key is never sent to another host.
    """
    url = url or os.environ.get("TIGHTFIT_URL")
    key = key or os.environ.get("TIGHTFIT_KEY")
    if url and (key or httpx.URL(url).host not in _LOCAL):
        return url, key
    from app.settings import Settings

    settings = Settings()
    file = Path(settings.data_dir) / "api_key"
    if key is None and file.is_file():
        key = file.read_text().strip()
    return url or f"http://{settings.host}:{settings.port}", key
