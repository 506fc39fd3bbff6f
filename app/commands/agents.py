"""tightfit agents: list, enrol, remove; and the agent itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.base import Session, verb
from app.commands.show import listing

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Agents that measure on other machines: list, enrol, remove.")


@verb(app, "list")
def list_agents(session: Session) -> None:
    """List the agents and when they were last heard of."""
    agents = list(session.client.items("/v1/agents"))
    session.answer(agents, listing(("id", "name", "processor", "runtime", "last seen"), agents, _row))


@verb(app, "enrol")
def enrol(session: Session) -> None:
    """Make a one-time code, valid for 15 minutes, and show the command to run on the other machine."""
    made = session.client.post("/v1/agents/enrolments")
    command = f"tightfit agent --url {session.client.url} --code {made['code']}"

    def draw(console: Console) -> None:
        console.print(command, style="bold", soft_wrap=True)
        console.print(f"valid until {made['expires_at'][:16].replace('T', ' ')} UTC, once", style="dim")

    session.answer({**made, "command": command}, draw)


@verb(app, "remove")
def remove(session: Session, agent: Annotated[str, typer.Argument(help="Id or name of the agent.")]) -> None:
    """Remove an agent; its token ends to work at once."""
    found = session.client.find("agents", agent)
    session.client.delete(f"/v1/agents/{found['id']}")
    session.answer({"id": found["id"], "removed": True}, lambda console: console.print(f"{found['id']}  removed"))


def _row(agent: Any) -> tuple[object, ...]:
    host = agent["host"]
    seen = agent["last_seen_at"][:19].replace("T", " ")
    return agent["id"], agent["name"], host.get("processor", "?"), host.get("onnxruntime", "?"), seen
