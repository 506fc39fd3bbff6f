"""Which stage makes what of a method's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from app.domain import methods as domain
from worker.methods.channel_gating import GatingStage
from worker.methods.corrected import BiasStage
from worker.methods.joint import JointStage
from worker.methods.protocol import Stage, Subject
from worker.methods.quantized import relaxed, straight_through
from worker.methods.rounded import RoundingStage
from worker.methods.thresholded import ThresholdStage

PREPARE: Mapping[str, Callable[[Subject, Any], Stage]] = {
    domain.StraightThrough.name: straight_through,
    domain.RelaxedQuantization.name: relaxed,
    domain.LearnedThresholds.name: ThresholdStage,
    domain.JointPruning.name: JointStage,
    domain.ChannelGating.name: GatingStage,
    domain.BiasCorrection.name: BiasStage,
    domain.RelaxedRounding.name: RoundingStage,
}


def prepare(subject: Subject, method: domain.Method) -> Stage:
    """Return a method ready to be fitted on a subject."""
    return PREPARE[method.name](subject, method)
