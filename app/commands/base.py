"""What every verb shares: where the service is, `--json`, exit codes, and how a refusal is shown."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from app.client import Client

OK, ERROR, USAGE, BEST_EFFORT = 0, 1, 2, 3
Verb = Callable[..., Any]


@dataclass(frozen=True)
class Session:
    """The options that every verb takes, and the connection and consoles they lead to."""

    as_json: Annotated[bool, typer.Option("--json", help="Print pure JSON on stdout.")] = False
    url: Annotated[str | None, typer.Option(help="Address of the service (env TIGHTFIT_URL).")] = None
    key: Annotated[str | None, typer.Option(help="API key (env TIGHTFIT_KEY).")] = None

    @cached_property
    def client(self) -> Client:
        """The connection to the service, opened on first use."""
        from app.client import Client

        return Client(self.url, self.key)

    @cached_property
    def console(self) -> Console:
        """The console for people; silent in JSON mode."""
        from rich.console import Console

        return Console(quiet=self.as_json, highlight=False)

    def answer(self, value: Any, draw: Callable[[Console], None]) -> None:
        """Print `value` as JSON, or let `draw` show it to a person."""
        if self.as_json:
            print_json(value)
        else:
            draw(self.console)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def verb(app: typer.Typer, name: str | None = None) -> Callable[[Verb], Verb]:
    """Register a function as a command.

    A parameter whose type is a dataclass stands for one option per field: groups of options are written once.
    """

    def register(function: Verb) -> Verb:
        app.command(name, help=inspect.getdoc(function))(_flat(function))
        return function

    return register


def _flat(function: Verb) -> Verb:
    """Return `function` with the fields of its dataclass parameters as parameters of their own."""
    hints = get_type_hints(function, include_extras=True)
    bundles: dict[str, type] = {
        name: hint for name, hint in hints.items() if isinstance(hint, type) and dataclasses.is_dataclass(hint)
    }
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in bundles:
            parameters += _fields(bundles[parameter.name])
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=_KEYWORD))
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)

    @functools.wraps(function)
    def run(**given: Any) -> Any:
        for name, bundle in bundles.items():
            own = {field.name: given.pop(field.name) for field in dataclasses.fields(bundle)}
            given[name] = bundle(**own)
        return guarded(function, **given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__
    return run


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _fields(bundle: type) -> list[inspect.Parameter]:
    hints = get_type_hints(bundle, include_extras=True)
    made = []
    for field in dataclasses.fields(bundle):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING:
            default = inspect.Parameter.empty
        made.append(inspect.Parameter(field.name, _KEYWORD, default=default, annotation=hints[field.name]))
    return made


def guarded(function: Verb, **given: Any) -> Any:
    """Call a verb; show a refusal or a broken connection as such and leave with exit code 1."""
    import httpx

    from app.client import ApiProblem, DigestMismatch

    as_json = any(isinstance(value, Session) and value.as_json for value in given.values())
    try:
        return function(**given)
    except ApiProblem as problem:
        show_problem(problem, as_json)
    except httpx.TransportError as error:
        show_problem(
            ApiProblem("unreachable", 0, f"the service does not answer ({error}); start it: tightfit serve"), as_json
        )
    except (DigestMismatch, TimeoutError, OSError) as error:
        show_problem(ApiProblem(type(error).__name__, 0, str(error)), as_json)
    raise typer.Exit(ERROR)


def show_problem(problem: Any, as_json: bool) -> None:
    """Show a refusal: its name, what it says, and the fields at fault."""
    if as_json:
        print_json({"problem": problem.to_json()})
        return
    from rich.console import Console
    from rich.text import Text

    from app.commands.show import refusal

    console = Console(stderr=True, highlight=False)
    refusal(console, problem.to_json())
    for key, value in problem.extra.items():
        console.print(Text(f"  {key}: {json.dumps(value)}", style="dim"))


@contextmanager
def usage() -> Iterator[None]:
    """Turn a ValueError about what was typed into the command line's own error (exit code 2)."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
