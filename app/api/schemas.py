"""What requests may say (pydantic, extra fields forbidden, finite numbers only)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from app.domain.methods import (
    BiasCorrection,
    ChannelGating,
    GateStart,
    JointPruning,
    LearnedThresholds,
    RelaxedQuantization,
    RelaxedRounding,
    Start,
    Training,
    Widths,
)
from app.domain.metrics import MetricName
from app.domain.opsets import DEFAULT, LOWEST
from app.domain.owners import ME, PATTERN
from app.domain.turns import FIRST, LAST


def _not_me(name: str) -> str:
    if name == ME:
        raise ValueError(f"{ME!r} stands for the owner who asks")
    return name


def _to_come(moment: datetime) -> datetime:
    if moment <= datetime.now(UTC):
        raise ValueError("the moment has passed")
    return moment


Name = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f\u202a-\u202e\u2066-\u2069]+$")
]
Metric = Literal["macs", "bops", "weight_bytes", "peak_activation_bytes", "latency_ms", "energy_mj"]
SamplerName = Literal["tpe", "nsga2", "cmaes", "gp", "random"]
Axis = Literal["kl", "macs", "bops", "weight_bytes", "peak_activation_bytes", "latency_ms", "energy_mj"]
Ident = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,64}$")]
DeviceRef = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,64}(@[0-9]{1,9})?$")]
FutureMoment = Annotated[AwareDatetime, AfterValidator(_to_come)]
Owner = Annotated[str, StringConstraints(pattern=PATTERN), AfterValidator(_not_me)]
Bits = Annotated[int, Field(ge=2, le=32)]
Positive = Annotated[FiniteFloat, Field(gt=0)]


class Strict(BaseModel):
    """Forbids unknown fields."""

    model_config = ConfigDict(extra="forbid", defer_build=True)  # an idle service need not hold what checks requests


_MEASURED = ("evidence", "stat")


class LimitIn(Strict):
    """One limit: absolute (`max`) or relative to the 8-bit or float network."""

    metric: Metric
    max: Positive | None = None
    relative: Positive | None = None
    relative_to: Literal["w8a8", "float"] = "w8a8"
    evidence: Literal["modelled", "measured"] = "modelled"
    stat: Literal["min", "p50", "p95"] = "min"

    @model_serializer(mode="wrap")
    def _told(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what a modelled limit does not need to say: such requests read as they always did."""
        found: dict[str, Any] = serialize(self)
        return found if self.evidence == "measured" else {k: v for k, v in found.items() if k not in _MEASURED}

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.max is None) == (self.relative is None):
            raise ValueError("give either max or relative")
        if self.evidence == "measured" and self.metric != "latency_ms":
            raise ValueError(f"{self.metric} can't be measured; only a limit on latency_ms may demand that")
        return self


class BitRuleIn(Strict):
    """Widths that a layer may have: of its weights, of the activation it reads."""

    weight: Annotated[list[Bits], Field(min_length=1)] | None = None
    activation: Annotated[list[Bits], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.weight is None and self.activation is None:
            raise ValueError("give weight, activation or both")
        return self


Ratio = Annotated[FiniteFloat, Field(gt=0, le=1)]


class SpaceIn(Strict):
    """Bounds of the space."""

    min_keep: Ratio = 0.125
    prune: bool = True
    weight_bits: list[Bits] | None = None
    activation_bits: list[Bits] | None = None
    freeze: list[Name] = []
    fixed_bits: dict[Name, tuple[Bits, Bits]] = {}
    min_keeps: dict[Name, Ratio] = {}
    max_keeps: dict[Name, Ratio] = {}
    bits: dict[Name, BitRuleIn] = {}
    first_last: Bits | None = None


class TargetIn(Strict):
    """A quality that is enough, on the evaluation pictures."""

    metric: MetricName
    value: FiniteFloat


class StopIn(Strict):
    """When to stop before the trials are spent: no gain for `patience` trials, or the target reached in the budget.

    Where the goal is a front, it is no gain if the volume it covers grows by at most `growth` (a share; 0.01).
    """

    patience: Annotated[int, Field(ge=1, le=100_000)] | None = None
    target: TargetIn | None = None
    growth: Annotated[FiniteFloat, Field(ge=0, lt=1)] | None = None

    @model_serializer(mode="wrap")
    def _told(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a growth that was not named."""
        found: dict[str, Any] = serialize(self)
        return {key: value for key, value in found.items() if key != "growth" or value is not None}


class SearchOptionsIn(Strict):
    """What for and how hard to search: the best network inside the budget, or the front over `axes` up to it."""

    trials: Annotated[int, Field(ge=1, le=100_000)] = 60
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    sampler: SamplerName = "tpe"
    max_wall_s: Positive | None = None
    runners: Annotated[int, Field(ge=1, le=16)] = 1
    warm_start: bool = True
    allow_best_effort: bool = False
    stop: StopIn = StopIn()
    goal: Literal["best", "front"] = "best"
    axes: Annotated[list[Axis], Field(min_length=2, max_length=3)] | None = None

    @model_serializer(mode="wrap")
    def _told(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the plain goal: such requests read as they always did."""
        found: dict[str, Any] = serialize(self)
        plain = {"goal": "best", "axes": None}
        return {key: value for key, value in found.items() if key not in plain or value != plain[key]}

    @model_validator(mode="after")
    def _axes_of_a_front(self) -> Self:
        if self.axes is not None and self.goal != "front":
            raise ValueError("axes belong to the goal 'front'")
        if self.axes is not None and ("kl" not in self.axes or len(set(self.axes)) < len(self.axes)):
            raise ValueError("axes are 'kl' and one or two different costs")
        return self


class QualityIn(Strict):
    """A quality to keep on the hold-out pictures, by the search's metric unless another is named.

    Where higher is better: at least `min`, at most `max_drop` below the float network's. Else at most `max`.
    """

    metric: MetricName | None = None
    min: Annotated[FiniteFloat, Field(gt=0, le=1)] | None = None
    max_drop: Annotated[FiniteFloat, Field(ge=0, lt=1)] | None = None
    max: Positive | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.min is None and self.max_drop is None and self.max is None:
            raise ValueError("give min, max_drop or both, or max")
        return self

    @model_serializer(mode="wrap")
    def _told(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what was not given."""
        return {key: value for key, value in serialize(self).items() if value is not None}


class TrainingIn(Strict):
    """How a network is trained (see `app.domain.methods.Training`)."""

    epochs: Annotated[int, Field(ge=1, le=1000)] = Training.epochs
    rows: Annotated[int, Field(ge=1, le=10_000_000)] = Training.rows
    batch: Annotated[int, Field(ge=1, le=4096)] = Training.batch
    rate: Annotated[FiniteFloat, Field(gt=0, le=1)] = Training.rate
    labels: Annotated[FiniteFloat, Field(ge=0, le=1)] = Training.labels
    shift: Annotated[int, Field(ge=0, le=64)] = Training.shift
    mirror: bool = Training.mirror
    max_wall_s: Positive | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Training.seed


class StraightThroughIn(Strict):
    """Quantization-aware training with straight-through rounding."""

    name: Literal["straight-through"]
    training: TrainingIn = TrainingIn()


class RelaxedQuantizationIn(Strict):
    """Training through a relaxed, noisy rounding."""

    name: Literal["relaxed-quantization"]
    training: TrainingIn = TrainingIn()
    temperature: Annotated[FiniteFloat, Field(gt=0, le=10)] = RelaxedQuantization.temperature
    noise: Annotated[FiniteFloat, Field(ge=0.05, le=1)] = RelaxedQuantization.noise
    straight: bool = RelaxedQuantization.straight
    settled: Annotated[FiniteFloat, Field(ge=0, le=1)] = RelaxedQuantization.settled


class JointPruningIn(Strict):
    """Channels and bits learned together under the budget's limits (see `app.domain.methods.JointPruning`)."""

    name: Literal["djpq"]
    training: TrainingIn = TrainingIn()
    start: Start = JointPruning.start
    joint: Annotated[FiniteFloat, Field(ge=0, le=1)] = JointPruning.joint
    gamma: Annotated[FiniteFloat, Field(ge=0, le=1)] = JointPruning.gamma
    threshold: Annotated[FiniteFloat, Field(gt=0, le=1000)] = JointPruning.threshold
    kappa: Annotated[FiniteFloat, Field(gt=0, le=1000)] = JointPruning.kappa
    structure_rate: Annotated[FiniteFloat, Field(gt=0, le=1)] = JointPruning.structure_rate
    widths: Widths = JointPruning.widths


class LearnedThresholdsIn(Strict):
    """Weights below a learned threshold become zero, down to a density."""

    name: Literal["learned-thresholds"]
    training: TrainingIn = TrainingIn()
    density: Annotated[FiniteFloat, Field(gt=0, lt=1)] = LearnedThresholds.density
    pruning: Annotated[FiniteFloat, Field(gt=0, le=1)] = LearnedThresholds.pruning
    outs: Annotated[int, Field(ge=1, le=1024)] = LearnedThresholds.outs
    ins: Annotated[int, Field(ge=0, le=1024)] = LearnedThresholds.ins
    keep: Annotated[int, Field(ge=1, le=1024)] | None = None
    cut: bool = LearnedThresholds.cut


class ChannelGatingIn(Strict):
    """Gates that decide per input which filters run (see `app.domain.methods.ChannelGating`)."""

    name: Literal["channel-gating"]
    training: TrainingIn = TrainingIn()
    macs: Annotated[FiniteFloat, Field(gt=0, lt=1)] = ChannelGating.macs
    p95: Annotated[FiniteFloat, Field(gt=0, le=2)] | None = None
    block: Annotated[int, Field(ge=1, le=1024)] = ChannelGating.block
    gamma: Annotated[FiniteFloat, Field(ge=0, le=100)] = ChannelGating.gamma
    alone: Annotated[FiniteFloat, Field(ge=0, le=1)] = ChannelGating.alone
    settled: Annotated[FiniteFloat, Field(ge=0, le=1)] = ChannelGating.settled
    gate_rate: Annotated[FiniteFloat, Field(gt=0, le=1)] = ChannelGating.gate_rate
    rare: Annotated[FiniteFloat, Field(ge=0, lt=0.5)] = ChannelGating.rare
    start: GateStart = ChannelGating.start
    ramp: Annotated[FiniteFloat, Field(gt=0, le=1)] = ChannelGating.ramp
    shaped: Annotated[FiniteFloat, Field(gt=0, le=1)] = ChannelGating.shaped


class BiasCorrectionIn(Strict):
    """Mean errors of replaced weights are taken out of the biases."""

    name: Literal["bias-correction"]
    mode: Literal["analytic", "local", "sequential"] = BiasCorrection.mode
    padding_aware: bool = BiasCorrection.padding_aware
    rows: Annotated[int, Field(ge=1, le=10_000_000)] = BiasCorrection.rows


class RelaxedRoundingIn(Strict):
    """Weights below 8 bits are rounded anew, each layer for its own outputs."""

    name: Literal["relaxed-rounding"]
    steps: Annotated[int, Field(ge=1, le=100_000)] = RelaxedRounding.steps
    rate: Annotated[FiniteFloat, Field(gt=0, le=1)] = RelaxedRounding.rate
    noise: Annotated[FiniteFloat, Field(ge=0.05, le=1)] = RelaxedRounding.noise
    rows: Annotated[int, Field(ge=1, le=10_000_000)] = RelaxedRounding.rows
    seed: Annotated[int, Field(ge=0, lt=2**31)] = RelaxedRounding.seed


MethodIn = Annotated[
    StraightThroughIn
    | RelaxedQuantizationIn
    | LearnedThresholdsIn
    | JointPruningIn
    | ChannelGatingIn
    | BiasCorrectionIn
    | RelaxedRoundingIn,
    Field(discriminator="name"),
]


class ExportIn(Strict):
    """How the ONNX files are written: the opset that they declare."""

    opset: Annotated[int, Field(ge=LOWEST, le=DEFAULT)] = DEFAULT


class ExportAgainIn(Strict):
    """The body of POST /v1/candidates/{id}/export: another opset than the search asked for."""

    opset: Annotated[int, Field(ge=LOWEST, le=DEFAULT)] | None = None


Priority = Annotated[int, Field(ge=FIRST, le=LAST)]
"""1 is served first, 5 last; 3 where none is named."""

Methods = Annotated[list[MethodIn], Field(min_length=1, max_length=4)]
"""Applied one after the other."""

_OPTIONAL = ("agent", "metric", "quality", "methods", "export", "priority")


class SearchIn(Strict):
    """The body of POST /v1/searches. `dataset` null: there are no data, and the search draws inputs itself."""

    name: Name
    model_id: Ident
    dataset: dict[Literal["all", "calibration", "evaluation", "holdout"], Ident] | None
    device_id: DeviceRef
    limits: list[LimitIn]
    agent: Ident | None = None
    metric: MetricName | None = None
    quality: QualityIn | None = None
    space: SpaceIn = SpaceIn()
    search: SearchOptionsIn = SearchOptionsIn()
    export_top: Annotated[int, Field(ge=0, le=8)] = 1
    polish: bool = True
    methods: Methods | None = None
    export: ExportIn | None = None
    priority: Priority | None = None

    @model_serializer(mode="wrap")
    def _told(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an agent, a metric, a quality, methods, an export or a priority that were not named."""
        found: dict[str, Any] = serialize(self)
        return {key: value for key, value in found.items() if key not in _OPTIONAL or value is not None}

    @model_validator(mode="after")
    def _timed_alone(self) -> Self:
        if self.search.runners > 1 and any(limit.evidence == "measured" for limit in self.limits):
            raise ValueError("a search that measures latency has one runner")
        if self.search.goal == "front" and any(limit.evidence == "measured" for limit in self.limits):
            raise ValueError("a search for a front counts costs; measure latency in a search for the best network")
        return self


class WhatIfIn(Strict):
    """The body of POST /v1/searches/{id}/whatif: modelled limits to ask about."""

    limits: Annotated[list[LimitIn], Field(max_length=32)]

    @model_validator(mode="after")
    def _modelled(self) -> Self:
        if any(limit.evidence == "measured" for limit in self.limits):
            raise ValueError("nothing is measured here: ask about modelled limits")
        return self


class ExtendIn(Strict):
    """The body of POST /v1/searches/{id}/extend: new totals, more than the search has."""

    trials: Annotated[int, Field(ge=1, le=100_000)] | None = None
    max_wall_s: Positive | None = None


class PriorityIn(Strict):
    """The body of POST /v1/searches/{id}/priority."""

    priority: Priority


class MemberIn(Strict):
    """One device of a fleet: its limits, and its own space where the common one does not suit it."""

    device_id: DeviceRef
    limits: list[LimitIn]
    name: Name | None = None
    space: SpaceIn | None = None

    @model_validator(mode="after")
    def _modelled(self) -> Self:
        if any(limit.evidence == "measured" for limit in self.limits):
            raise ValueError(
                "members of a fleet share evaluations, not timings: measure latency in a search of its own"
            )
        return self


class FleetIn(Strict):
    """The body of POST /v1/fleets. Later members make at most `share` times the evaluations of the first; each applies
    the `methods` to its own best networks. `dataset` null: as for a search."""

    name: Name
    model_id: Ident
    dataset: dict[Literal["all", "calibration", "evaluation", "holdout"], Ident] | None
    members: Annotated[list[MemberIn], Field(min_length=1, max_length=64)]
    share: Annotated[FiniteFloat, Field(gt=0, le=1)] = 0.2
    metric: MetricName | None = None
    quality: QualityIn | None = None
    space: SpaceIn = SpaceIn()
    search: SearchOptionsIn = SearchOptionsIn()
    export_top: Annotated[int, Field(ge=0, le=8)] = 1
    polish: bool = True
    methods: Methods | None = None
    export: ExportIn | None = None
    priority: Priority | None = None

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if not self.search.warm_start:
            raise ValueError("members of a fleet share evaluations: warm_start can't be off")
        return self


class InputRuleIn(Strict):
    """How one array's numbers become an input."""

    layout: Literal["NCHW", "NHWC", "NHW", "NC", "NCL"] = "NCHW"
    scale: Positive = 1.0
    mean: list[FiniteFloat] = []
    std: list[Positive] = []


class DatasetSpecIn(InputRuleIn):
    """How stored numbers become inputs: `x` and arrays of three dimensions or more; single arrays under `inputs`."""

    role: Literal["all", "calibration", "evaluation", "holdout"] = "all"
    inputs: Annotated[dict[str, InputRuleIn], Field(max_length=16)] = {}
    split_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class ScheduleIn(Strict):
    """A cron schedule of a search."""

    name: Name
    cron: Annotated[str, StringConstraints(min_length=9, max_length=100)]
    timezone: Annotated[str, StringConstraints(min_length=1, max_length=64)] = "UTC"
    search: SearchIn


class ScheduleChangeIn(Strict):
    """What may change of a schedule."""

    name: Name | None = None
    enabled: bool | None = None


class RenameIn(Strict):
    """What may change of a model or dataset."""

    name: Name


class KeyIn(Strict):
    """A new API key; its owner is that of the key that makes it where none is named. Without an end it lasts."""

    name: Name
    owner: Owner | None = None
    expires_at: FutureMoment | None = None
    scopes: list[Literal["models:write", "searches:write", "artefacts:read", "admin"]] = [
        "models:write",
        "searches:write",
        "artefacts:read",
    ]
