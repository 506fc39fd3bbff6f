"""Bodies of requests by and about agents."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, StringConstraints, model_validator

from app.api.schemas import Ident, Name, Strict

Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Session = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,64}$")]
Milliseconds = Annotated[FiniteFloat, Field(ge=0.0)]
MAX_FACTS = 64


class EnrolIn(Strict):
    """An agent that enrols: the one-time code, a name, and facts about its host."""

    code: Text
    name: Name
    host: Annotated[dict[str, Any], Field(max_length=MAX_FACTS)] = {}


class HeartbeatIn(Strict):
    """A process of an agent lives; `leaving` gives the lease of its job back."""

    session: Session
    job: Ident | None = None
    leaving: bool = False


class PullIn(Strict):
    """A process asks for work and waits up to `wait_s` seconds for it."""

    session: Session
    wait_s: Annotated[float, Field(ge=0.0, le=20.0)] = 20.0


class LatencyIn(Strict):
    """Milliseconds of one inference over `runs` interleaved runs."""

    min_ms: Milliseconds
    median_ms: Milliseconds
    p95_ms: Milliseconds
    runs: Annotated[int, Field(ge=1)]


class FaultIn(Strict):
    """Why an item could not be measured."""

    detail: Annotated[str, StringConstraints(max_length=4000)]


class ResultIn(Strict):
    """What came of one item: its latency, its kernels' milliseconds by node name, or a problem."""

    latency: LatencyIn | None = None
    kernels: Annotated[dict[str, Milliseconds], Field(max_length=20_000)] | None = None
    problem: FaultIn | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(item is not None for item in (self.latency, self.kernels, self.problem)) != 1:
            raise ValueError("one of latency, kernels and problem")
        return self


class ResultsIn(Strict):
    """Results of some items by id, and the conditions they were measured under."""

    session: Session
    results: Annotated[dict[Text, ResultIn], Field(max_length=1000)]
    conditions: Annotated[dict[str, Any], Field(max_length=MAX_FACTS)] | None = None


class MeasurementIn(Strict):
    """Exported candidates and uploaded ONNX networks to be measured against each other on an agent."""

    agent_id: Ident
    artefact_ids: Annotated[list[Ident], Field(max_length=24)] = []
    model_ids: Annotated[list[Ident], Field(max_length=24)] = []
    kind: Literal["time", "kernels"] = "time"
    rounds: Annotated[int, Field(ge=1, le=1000)] = 60

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        named = [*self.artefact_ids, *self.model_ids]
        if len(set(named)) != len(named):
            raise ValueError("the same artefact or model twice")
        return self


class CalibrationIn(Strict):
    """Networks whose shapes the calibration is made with, and the agent on the device (none: the worker's host)."""

    model_ids: Annotated[list[Ident], Field(min_length=1, max_length=8)]
    agent_id: Ident | None = None
