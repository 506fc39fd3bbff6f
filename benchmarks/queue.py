"""`python -m benchmarks queue`: a service, three workers on PostgreSQL, four searches of two owners: who comes when?

Ada asks for two searches, then Ben for one, all of them for five minutes' work however fast the machine is, then Ben
for a short, urgent one. Two may run at a time, and an owner may have two. Who works on what is read from the database
five times a second, what came of it from the searches' event logs.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from app.client import ApiProblem, Client
from app.store.engine import connect
from app.store.tables import Runner
from benchmarks.cells import cell
from benchmarks.claims import Claim, judged, table
from benchmarks.live import START_S, _answers, _end, _port, _process, _wait
from benchmarks.service import pushed
from tests.app.store.databases import postgres_url
from tests.worker.digit_files import write_files

Json = dict[str, Any]
WORKERS, MOST, LIVE, SLICE_S = 3, 2, 2, 10
WALL_S, URGENT_TRIALS = 300.0, 10
SAMPLE_S, JOB_S = 0.2, 1800.0
FAIR = (0.35, 0.65)
SETTINGS = {
    "TIGHTFIT_MAX_RUNNING": str(MOST),
    "TIGHTFIT_MAX_LIVE_SEARCHES": str(LIVE),
    "TIGHTFIT_SLICE_S": str(SLICE_S),
    "TIGHTFIT_DISK_FLOOR_BYTES": "0",
}
ASKED: dict[str, tuple[str, int, Json]] = {
    "ada-1": ("ada", 3, {"metric": "bops", "relative": 0.5}),
    "ada-2": ("ada", 3, {"metric": "weight_bytes", "relative": 0.5}),
    "ben-1": ("ben", 3, {"metric": "bops", "relative": 0.25}),
    "ben-urgent": ("ben", 1, {"metric": "bops", "relative": 0.4}),
}
"""By name in the order of asking: owner, priority and limit."""


@dataclass
class Slice:
    """A search in a worker's hands: seconds since the first was asked for."""

    name: str
    begin: float
    end: float


def run() -> None:
    """Measure (unless there is a result) and print the order of service and what holds."""
    found = cell("queue", measure)
    slices = [Slice(**item) for item in found["slices"]]
    rows = [[s.name, *map(str, ASKED[s.name][:2]), f"{s.begin:.1f}", f"{s.end:.1f}"] for s in slices]
    print(table([["search", "owner", "priority", "from s", "to s"], *rows]))
    ends = [[name, *(str(found["searches"][name][key]) for key in ("asked", "events", "trials", "outcome", "finished"))]
            for name in ASKED]  # fmt: skip
    print(table([["search", "asked s", "events", "trials", "outcome", "finished s"], *ends]))
    print("\n".join(judged(claims(found), "python -m benchmarks queue")))


def claims(found: Json) -> list[Claim]:
    """Return what is claimed of the slices."""
    slices, searches = [Slice(**item) for item in found["slices"]], found["searches"]
    most, share = found["most"], shares(slices, searches)
    before = overtaken(slices, searches)
    outcomes = {name: item["outcome"] for name, item in searches.items()}
    ends = {name: item["finished"] for name, item in searches.items()}
    counted = [item["trials"] for item in searches.values()]
    return [
        Claim(f"at most {MOST} searches are worked on at a time by {WORKERS} workers", most == MOST, f"{most}"),
        Claim("the urgent search, asked for last, is never overtaken", not before, f"{len(before)} slices {before}"),
        Claim("it ends first", min(ends, key=ends.__getitem__) == "ben-urgent", f"{ends}"),
        Claim("owners share the workers, though one asks for twice as much",
              FAIR[0] <= share <= FAIR[1], f"{100 * share:.0f} % Ben's, behind his urgent one, while both had some"),
        Claim("every trial is told once", min(counted) > 0 and found["doubled"] == 0,
              f"{counted} trials, {found['doubled']} events twice"),
        Claim("all keep their limits", set(outcomes.values()) == {"feasible"}, f"{outcomes}"),
        Claim("a third search of one owner is refused by name", found["third"] == "quota-exceeded", found["third"]),
    ]  # fmt: skip


def shares(slices: Sequence[Slice], searches: Mapping[str, Json]) -> float:
    """Return Ben's part of the time spent on usual searches while both owners had some, and he no urgent one.

    The urgent one counts as his, too: while it lasts his other one has fewer turns.
    """
    usual = [name for name, (_, priority, _) in ASKED.items() if priority == 3]
    begin = searches["ben-urgent"]["finished"]
    last = {who: max(searches[name]["finished"] for name in usual if ASKED[name][0] == who) for who in ("ada", "ben")}
    spent = {"ada": 0.0, "ben": 0.0}
    for item in slices:
        if item.name in usual:
            spent[ASKED[item.name][0]] += max(0.0, min(item.end, *last.values()) - max(item.begin, begin))
    return spent["ben"] / max(1e-9, sum(spent.values()))


def overtaken(slices: Sequence[Slice], searches: Mapping[str, Json]) -> list[str]:
    """Return the usual slices that began while the urgent search waited."""
    mine = [item for item in slices if item.name == "ben-urgent"]
    waits = zip(
        [searches["ben-urgent"]["asked"], *(item.end for item in mine)], [item.begin for item in mine], strict=False
    )
    gaps = [(begin + 2 * SAMPLE_S, end - 2 * SAMPLE_S) for begin, end in waits]  # what a look each 0.2 s can tell
    return [
        item.name for item in slices for begin, end in gaps if item.name != "ben-urgent" and begin < item.begin < end
    ]


def measure() -> Json:
    """Run everything on a database of its own, which is dropped at the end."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres_url())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tightfit-queue-")))
        owners = stack.enter_context(_started(folder, url))
        bodies = {who: _body(client, write_files(_made(folder / who))) for who, client in owners.items()}
        begun = time.time()
        with _watched(url) as seen:
            asked = _ask(owners, bodies, begun)
            third = _refused(owners["ada"], bodies["ada"])
            for name, (id, _) in asked.items():
                owners[ASKED[name][0]].wait_search(id)
        found = {name: _told(owners[ASKED[name][0]], id, at, begun) for name, (id, at) in asked.items()}
        names = {id: name for name, (id, _) in asked.items()}
        doubled = sum(item.pop("doubled") for item in found.values())
        return {"slices": [asdict(item) for item in _slices(seen, names, begun)], "searches": found, "third": third,
                "most": max(len({id for id, _ in held}) for _, held in seen), "doubled": doubled}  # fmt: skip


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@contextmanager
def _started(folder: Path, url: str) -> Iterator[dict[str, Client]]:
    """Run the service and the workers; yield a client for each owner."""
    before, port = dict(os.environ), _port()
    os.environ.update(SETTINGS)
    processes = [_process(folder, "service", ["serve", "--port", str(port), "--workers", "0"], url)]
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(lambda: _answers(address), START_S, "the service's start")
        processes += [_process(folder, f"w{k}", ["worker", "--executor-id", f"w{k}"], url) for k in range(WORKERS)]
        with Client(address, (folder / "api_key").read_text().strip()) as admin:
            _wait(lambda: len(admin.get("/v1/workers")["items"]) == WORKERS, START_S, "the workers")
            scopes = ["models:write", "searches:write", "artefacts:read"]
            keys = {
                who: admin.post("/v1/keys", {"name": who, "owner": who, "scopes": scopes})["key"]
                for who in ("ada", "ben")
            }
        yield {who: Client(address, key) for who, key in keys.items()}
    finally:
        for process in reversed(processes):
            _end(process)
        os.environ.clear()
        os.environ.update(before)


def _body(client: Client, files: Path) -> Json:
    """Upload an owner's network and data; return what a search is asked with."""
    model, data = pushed(client, files)
    return {"model_id": model, "dataset": {"all": data}, "device_id": "generic-npu", "export_top": 0,
            "polish": False, "search": {"warm_start": False}}  # fmt: skip


def _ask(owners: Mapping[str, Client], bodies: Mapping[str, Json], begun: float) -> dict[str, tuple[str, float]]:
    """Ask for the searches; the urgent one comes once others are under way. Returns ids and when they were asked."""
    asked: dict[str, tuple[str, float]] = {}
    for number, (name, (who, priority, limit)) in enumerate(ASKED.items()):
        if priority == 1:
            first = asked["ada-1"][0]
            _wait(lambda id=first: owners["ada"].get(f"/v1/searches/{id}")["progress"]["done"] >= 1, JOB_S, "a trial")
        made = {**bodies[who], "name": name, "priority": priority, "limits": [limit]}
        much = {"trials": URGENT_TRIALS} if priority == 1 else {"trials": 10_000, "max_wall_s": WALL_S}
        made["search"] = {**made["search"], **much, "seed": number}
        asked[name] = (owners[who].create_search(made)["id"], time.time() - begun)
    return asked


def _refused(client: Client, body: Json) -> str:
    try:
        client.create_search({**body, "name": "third", "limits": [{"metric": "bops", "relative": 0.5}]})
    except ApiProblem as problem:
        return problem.slug
    return "accepted"


Seen = list[tuple[float, set[tuple[str, str]]]]


@contextmanager
def _watched(url: str) -> Iterator[Seen]:
    """Note again and again which searches are in whose hands: (time, {(search, token)})."""
    database, done, seen = connect(url), threading.Event(), []

    def watch() -> None:
        while not done.wait(SAMPLE_S):
            with database.reading() as session:
                held = {(id, token) for id, token in session.execute(sa.select(Runner.search_id, Runner.token))}
            seen.append((time.time(), held))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
        database.dispose()


def _slices(seen: Seen, names: Mapping[str, str], begun: float) -> list[Slice]:
    found: dict[str, Slice] = {}
    for at, held in seen:
        for id, token in held:
            found.setdefault(token, Slice(names.get(id, id), at - begun, at - begun)).end = at - begun
    return sorted(found.values(), key=lambda item: item.begin)


def _told(client: Client, id: str, asked: float, begun: float) -> Json:
    """Return what a search's event log tells."""
    search, events = client.get(f"/v1/searches/{id}"), list(_events(client, id))
    trials = [event["idx"] for event in events if event["kind"] == "trial"]
    ended = next(event for event in reversed(events) if event["kind"] == "state")
    return {"asked": round(asked, 1), "events": len(events), "trials": len(trials), "outcome": search["outcome"],
            "doubled": len(trials) - len(set(trials)) + len(events) - len({event["seq"] for event in events}),
            "finished": round(datetime.fromisoformat(ended["at"]).timestamp() - begun, 1)}  # fmt: skip


def _events(client: Client, id: str) -> Iterator[Json]:
    headers = {"Authorization": client._http.headers["authorization"]}
    with httpx.stream("GET", f"{client.url}/v1/searches/{id}/events", headers=headers, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line[5:])
