"""An agent's connection to its service: enrolment, the file with the token, and requests that outlast a restart."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import httpx

from worker.hardware.host import describe

Json = dict[str, Any]
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 10.0
RETRIED = frozenset({429, 500, 502, 503, 504})


class Gone(Exception):
    """The service does not know this agent (any more), or refuses to enrol it."""


class Link:
    """Requests of one enrolled agent. Broken connections and busy services are tried again until they work."""

    def __init__(self, url: str, agent_id: str, token: str) -> None:
        self.url, self.agent_id = url, agent_id
        self._base = f"/v1/agents/{agent_id}"
        headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(40.0, connect=5.0))

    def pull(self, session: str, wait_s: float) -> Json | None:
        """Wait for a job and lease it."""
        answer = self._send("POST", "jobs:pull", {"session": session, "wait_s": wait_s})
        return None if answer.status_code == 204 else answer.json()

    def model(self, job: str, item: str, sha256: str) -> bytes:
        """Download an item's model. Raises ValueError where the bytes are not those announced."""
        answer = self._send("GET", f"jobs/{job}/items/{item}")
        if hashlib.sha256(answer.content).hexdigest() != sha256:
            raise ValueError(f"the model of {item} (HTTP {answer.status_code}) is not the one announced")
        return answer.content

    def post(self, job: str, session: str, results: Json) -> bool:
        """Post results; return whether the job is (still) this process's."""
        return self._send("POST", f"jobs/{job}/results", {"session": session, **results}).is_success

    def beat(self, session: str, job: str | None, leaving: bool = False) -> bool | None:
        """Say that this process lives; return whether it still has its job, None where the service was not reached."""
        try:
            answer = self._http.post(
                f"{self._base}/heartbeat", json={"session": session, "job": job, "leaving": leaving}
            )
        except httpx.TransportError:
            return None
        _check(answer)
        return answer.json()["job"] == job if answer.is_success else None

    def _send(self, method: str, path: str, body: Json | None = None) -> httpx.Response:
        """Send a request until the service answers. Raises Gone where the token works no more."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                answer = self._http.request(method, f"{self._base}/{path}", json=body)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code not in RETRIED:
                _check(answer)
                return answer
            time.sleep(pause)
            pause = min(MAX_PAUSE_S, pause * 2)


def _check(answer: httpx.Response) -> None:
    if answer.status_code in (401, 403, 410) and answer.headers.get("content-type", "").startswith(
        "application/problem"
    ):
        raise Gone(str(answer.json().get("detail")))


def default_file() -> Path:
    """Return where the token is kept: TIGHTFIT_AGENT_FILE, or agent.json in the user's data folder."""
    return Path(os.environ.get("TIGHTFIT_AGENT_FILE") or "~/.local/share/tightfit/agent.json").expanduser()


def enrolled(file: Path, url: str | None, code: str | None, name: str | None) -> Link:
    """Return the connection of an agent that is enrolled, enrolling it with a code the first time.

    Raises Gone where there is neither a token nor a code that works, or the service is not there.
    """
    known = json.loads(file.read_text()) if file.exists() else None
    if known is not None and url in (None, known["url"]):
        return Link(known["url"], known["id"], known["token"])
    if not url or not code:
        raise Gone("not enrolled yet: give --url and --code (tightfit agents enrol makes one)")
    body = {"code": code, "name": name or platform.node() or "agent", "host": describe()}
    try:
        answer = httpx.post(f"{url.rstrip('/')}/v1/agents:enrol", json=body, timeout=20.0)
    except httpx.TransportError as error:
        raise Gone(f"{url} does not answer ({error})") from error
    if not answer.is_success:
        raise Gone(f"the service refused: HTTP {answer.status_code} {answer.text[:300]}")
    made = answer.json()
    _keep(file, {"url": url.rstrip("/"), "id": made["id"], "token": made["token"]})
    return Link(url.rstrip("/"), made["id"], made["token"])


def _keep(file: Path, record: Json) -> None:
    """Write the token whole, readable by its owner only."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(json.dumps(record))
        os.fsync(handle.fileno())
    temporary.replace(file)
