"""tightfit search: run, watch, show, list, cancel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands import steering
from app.commands.base import Session, usage, verb
from app.commands.devices import read_record
from app.commands.limits import parse_bits, parse_figure, parse_limit, parse_limits, parse_methods, parse_ratios
from app.commands.show import best_line, listing, progress_line, search_bar, search_summary, whatif_table
from app.domain.metrics import HIGHER_IS_BETTER
from app.domain.opsets import DEFAULT, LOWEST
from app.domain.turns import FIRST, LAST
from app.domain.words import exit_code

if TYPE_CHECKING:
    from rich.console import Console

    from app.client import Client

app = typer.Typer(no_args_is_help=True, help="Searches: run, watch, show, steer, whatif, study, list, cancel.")
steering.register(app)

SearchArgument = Annotated[str, typer.Argument(help="Id or name of the search.")]


@dataclass(frozen=True)
class Request:
    """The options of `search run`; they go over what the file says."""

    file: Annotated[
        Path | None,
        typer.Option("-f", "--file", exists=True, dir_okay=False, help="The request as YAML or JSON."),
    ] = None
    name: Annotated[str | None, typer.Option(help="Name of the search.")] = None
    model: Annotated[str | None, typer.Option(help="Id or name of the model.")] = None
    data: Annotated[str | None, typer.Option(help="Id or name of the dataset.")] = None
    no_data: Annotated[
        bool, typer.Option("--no-data", help="There are no data: go by inputs drawn from the network's BatchNorms.")
    ] = False
    device: Annotated[str | None, typer.Option(help="Id or name of the device profile.")] = None
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="A limit, such as 'bops<=1/16', 'weight_bytes<=30kB', 'latency_ms<=2', "
            "'latency<=1/3 of float measured'; repeatable."
        ),
    ] = None
    agent: Annotated[str | None, typer.Option(help="Id or name of the agent that measures latency.")] = None
    trials: Annotated[int | None, typer.Option(min=1, help="Number of trials.")] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the search.")] = None
    sampler: Annotated[str | None, typer.Option(help="tpe, nsga2, cmaes, gp or random.")] = None
    min_keep: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Smallest keep ratio.")] = None
    prune: Annotated[bool | None, typer.Option("--prune/--no-prune", help="Remove channels or only bits.")] = None
    min_keeps: Annotated[
        list[str] | None, typer.Option(help="Smallest keep ratio of some: 'stage1*=0.5'; repeatable.")
    ] = None
    max_keeps: Annotated[
        list[str] | None, typer.Option(help="Largest keep ratio of some: 'stage3*=0.5'; repeatable.")
    ] = None
    bits: Annotated[
        list[str] | None,
        typer.Option(help="Legal widths of some layers' weights (w) and inputs (a): 'head=w8,w4,a8'; repeatable."),
    ] = None
    first_last: Annotated[int | None, typer.Option(min=2, max=32, help="Fewest bits of the first and last layers.")] = (
        None
    )
    freeze: Annotated[list[str] | None, typer.Option(help="Layers never pruned (pattern); repeatable.")] = None
    max_wall_s: Annotated[float | None, typer.Option(min=1.0, help="Stop after so many seconds.")] = None
    runners: Annotated[
        int | None, typer.Option(min=1, max=16, help="How many workers share the search, a thread each.")
    ] = None
    warm_start: Annotated[
        bool | None,
        typer.Option("--warm-start/--no-warm-start", help="Begin with what other searches measured of the network."),
    ] = None
    allow_best_effort: Annotated[
        bool | None,
        typer.Option(
            "--allow-best-effort/--no-best-effort", help="Search an impossible budget for the nearest network."
        ),
    ] = None
    patience: Annotated[int | None, typer.Option(min=1, help="Stop after so many trials without gain.")] = None
    target: Annotated[
        str | None, typer.Option(help="Stop once a trial in the budget is as good: 'accuracy>=0.9', 'kl<=0.05'.")
    ] = None
    metric: Annotated[
        str | None, typer.Option(help="What counts: accuracy, top5, miou, agreement, cosine, mse or kl.")
    ] = None
    quality: Annotated[str | None, typer.Option(help="A bound on the hold-out pictures: 'miou>=0.6', 'kl<=0.05'.")] = (
        None
    )
    min_accuracy: Annotated[float | None, typer.Option(help="Least accuracy on the hold-out pictures.")] = None
    max_drop: Annotated[float | None, typer.Option(help="Largest drop of the metric below the float network.")] = None
    polish: Annotated[
        bool | None, typer.Option("--polish/--no-polish", help="Polish the best before the end, or leave them.")
    ] = None
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="Train the best: 'relaxed-quantization', 'straight-through:epochs=20,rate=3e-3'; repeatable.",
        ),
    ] = None
    goal: Annotated[
        str | None, typer.Option(help="best: one network inside the budget; front: the whole front up to it.")
    ] = None
    axes: Annotated[
        str | None, typer.Option(help="What the front lies between: kl and one or two costs, such as 'kl,bops'.")
    ] = None
    growth: Annotated[
        float | None, typer.Option(help="With --patience and --goal front: the growth that counts as no gain (0.01).")
    ] = None
    priority: Annotated[int | None, typer.Option(min=FIRST, max=LAST, help="1 is served first, 5 last (3).")] = None
    export_top: Annotated[int | None, typer.Option(min=0, help="How many candidates to export.")] = None
    opset: Annotated[int | None, typer.Option(min=LOWEST, max=DEFAULT, help="ONNX opset of the exported files.")] = None


@dataclass(frozen=True)
class _Names:
    """Names of a request, still to be looked up."""

    model: str
    data: Any
    device: str
    rest: dict[str, Any] = field(default_factory=dict)


@verb(app, "run")
def run(
    session: Session,
    request: Request,
    detach: Annotated[bool, typer.Option("--detach", help="Queue it and return at once.")] = False,
) -> None:
    """Search for the best network inside a budget, and wait for the end.

    Leaves with 0 when a candidate keeps every limit, 3 when none does, 1 on failure. Ctrl-C detaches; the search
    goes on.
    """
    names = read_request(request)
    search = session.client.create_search(resolve(session.client, names))
    if detach:
        session.answer(search, lambda console: console.print(search["id"]))
        return
    _follow(session, search["id"])


@verb(app, "watch")
def watch(session: Session, search: SearchArgument) -> None:
    """Follow a search to its end; exit code as for run."""
    _follow(session, session.client.find("searches", search)["id"])


@verb(app, "show")
def show(session: Session, search: SearchArgument) -> None:
    """Show where a search stands, or its result; exit code 0, also while it is running."""
    found = session.client.find("searches", search)

    def draw(console: Console) -> None:
        console.print(f"{found['id']}  {found['name']}  {found['state']}  {progress_line(found)}")
        search_summary(console, found, best_candidate(session.client, found))

    session.answer(found, draw)


@verb(app, "whatif")
def whatif(
    session: Session,
    search: SearchArgument,
    limit: Annotated[list[str], typer.Option(help="A limit, as for run; repeatable.")],
) -> None:
    """Ask what a search knows about other limits: the best it measured, the best it predicts. Nothing is measured.

    Leaves with 0 when a measured trial keeps every limit, else 3.
    """
    with usage():
        limits = parse_limits(limit)
    found = session.client.whatif(session.client.find("searches", search)["id"], limits)
    session.answer(found, lambda console: whatif_table(console, found))
    raise typer.Exit(0 if found["measured"] else 3)


@verb(app, "study")
def study(
    session: Session,
    search: SearchArgument,
    out: Annotated[Path, typer.Option("-o", "--out", dir_okay=False, help="The file to write.")],
) -> None:
    """Write a search as an Optuna journal file: `optuna-dashboard FILE` shows it."""
    id = session.client.find("searches", search)["id"]
    out.write_text(session.client.study(id))
    session.answer({"id": id, "file": str(out)}, lambda console: console.print(f"{out}"))


@verb(app, "list")
def list_searches(session: Session) -> None:
    """List the searches, newest first."""
    searches = list(session.client.items("/v1/searches"))
    session.answer(searches, listing(("id", "name", "state", "outcome", "progress", "best"), searches, _row))


@verb(app, "cancel")
def cancel(session: Session, search: SearchArgument) -> None:
    """Stop a search; what it measured so far is kept."""
    found = session.client.cancel_search(session.client.find("searches", search)["id"])
    session.answer(found, lambda console: console.print(f"{found['id']}  {found['state']}"))


def read_request(request: Request) -> _Names:
    """Merge the file and the options of `search run`. Raises typer.BadParameter when something is missing or wrong."""
    body: dict[str, Any] = read_record(request.file) if request.file else {}
    model = request.model or body.pop("model", None) or body.pop("model_id", None)
    device = request.device or body.pop("device", None) or body.pop("device_id", None)
    data = request.data or body.pop("data", None) or body.pop("dataset", None)
    for key in ("model", "model_id", "device", "device_id", "data", "dataset"):
        body.pop(key, None)
    if data and request.no_data:
        raise typer.BadParameter("--no-data and data: name one of them")
    data = data or request.no_data
    for option, value in (("--model", model), ("--data", data), ("--device", device)):
        if not value:
            raise typer.BadParameter(f"{option} is missing; name it as an option or in the file")
    with usage():
        rest = merged(body, request)
    if not rest.get("limits"):
        raise typer.BadParameter("--limit is missing: say at least one, such as --limit 'bops<=1/16'")
    return _Names(str(model), data, str(device), rest)


def merged(body: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """Return the request's body, options over file, without the parts that name other resources."""
    limits = parse_limits(request.limit) if request.limit else [_limit(item) for item in body.get("limits", [])]
    space = _over(body.get("space"), parse_space(request))
    search = _over(
        body.get("search"),
        {
            "trials": request.trials,
            "seed": request.seed,
            "sampler": request.sampler,
            "max_wall_s": request.max_wall_s,
            "runners": request.runners,
            "warm_start": request.warm_start,
            "allow_best_effort": request.allow_best_effort,
            "stop": parse_stop(request.patience, request.target, request.growth),
            "goal": request.goal,
            "axes": [name.strip() for name in request.axes.split(",")] if request.axes else None,
        },
    )
    quality = _over(body.get("quality"), parse_quality(request))
    plain = {key: getattr(request, key) for key in ("name", "metric", "export_top", "agent", "polish", "priority")}
    export = _over(body.get("export"), {"opset": request.opset})
    own = {**plain, "quality": quality or None, "methods": parse_methods(request.methods or ()) or None}
    own["export"] = export or None
    whole = _over(body, {**own, "limits": limits, "space": space or None, "search": search or None})
    return {**whole, "name": whole.get("name") or "search"}


def parse_space(request: Request) -> dict[str, Any]:
    """Return what the options say of the space. Raises ValueError for a rule that is none."""
    ratios = {key: parse_ratios(getattr(request, key) or ()) or None for key in ("min_keeps", "max_keeps")}
    plain = {key: getattr(request, key) for key in ("min_keep", "prune", "first_last")}
    return {**plain, **ratios, "freeze": request.freeze or None, "bits": parse_bits(request.bits or ()) or None}


def parse_stop(patience: int | None, target: str | None, growth: float | None = None) -> dict[str, Any] | None:
    """Return the rules to stop by, or None where none is given. Raises ValueError for a target that is none."""
    rest = {} if growth is None else {"growth": growth}
    if target is None:
        return {"patience": patience, **rest} if patience is not None or rest else None
    metric, value = parse_figure(target)
    return {"patience": patience, "target": {"metric": metric, "value": value}, **rest}


def parse_quality(request: Request) -> dict[str, Any]:
    """Return what the options ask of the quality. Raises ValueError for a bound that is none."""
    found: dict[str, Any] = {"max_drop": request.max_drop}
    if request.min_accuracy is not None:
        found |= {"metric": "accuracy", "min": request.min_accuracy}
    if request.quality is not None:
        metric, value = parse_figure(request.quality)
        found |= {"metric": metric, "min" if metric in HIGHER_IS_BETTER else "max": value}
    return found


def resolve(client: Client, names: _Names) -> dict[str, Any]:
    """Return the body of POST /v1/searches: names looked up, ids in their place (of a device, its revision)."""
    data = names.data if isinstance(names.data, Mapping) else {"all": names.data}
    roles = {role: str(name) for role, name in data.items()}
    device = client.find("devices", names.device)
    agent = names.rest.get("agent")
    return {
        **names.rest,
        **({"agent": client.find("agents", agent)["id"]} if agent else {}),
        "model_id": client.find("models", names.model)["id"],
        "dataset": None
        if names.data is True
        else {k: client.find("datasets", name)["id"] for k, name in roles.items()},
        "device_id": f"{device['name']}@{device['revision']}",
    }


def best_candidate(client: Client, search: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the best candidate of a search in full, or None while there is none."""
    found = client.candidates(search["id"])
    return client.get(f"/v1/candidates/{found[0]['id']}") if found else None


def _follow(session: Session, id: str) -> None:
    try:
        with search_bar(session.console) as show_progress:
            search = session.client.wait_search(id, show_progress)
    except KeyboardInterrupt:
        session.console.print(f"detached; the search goes on: tightfit search watch {id}")
        raise typer.Exit(130) from None
    candidate = best_candidate(session.client, search)
    session.answer({**search, "candidate": candidate}, lambda console: search_summary(console, search, candidate))
    raise typer.Exit(exit_code(search))


def _limit(item: Any) -> dict[str, Any]:
    return parse_limit(item) if isinstance(item, str) else dict(item)


def _over(below: Any, above: Mapping[str, Any]) -> dict[str, Any]:
    return {**(below or {}), **{key: value for key, value in above.items() if value is not None}}


def _row(search: Any) -> tuple[object, ...]:
    return (
        search["id"],
        search["name"],
        search["state"],
        search.get("outcome") or "–",
        progress_line(search),
        best_line(search),
    )
