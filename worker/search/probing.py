"""The first stage of a search: probes measured one by one make the sensitivity table."""

from __future__ import annotations

from functools import cached_property

from app.domain.space import Assignment
from worker.search.rows import Goal, Settings
from worker.search.sensitivity import Probe, SensitivityTable, build_table, probes


class Probing:
    """Names the probes that are to be measured and takes their losses."""

    def __init__(self, goal: Goal, settings: Settings) -> None:
        self.goal, self.settings = goal, settings
        self._measured: dict[str, float | None] = {}
        self._probes = probes(goal.graph, goal.space, settings.max_probes)

    def pending_probes(self) -> list[Probe]:
        """Return the sensitivity probes not yet measured (at `settings.probe_fidelity`)."""
        return [probe for probe in self._probes if probe.key not in self._measured]

    @property
    def reference(self) -> Assignment:
        """Return the assignment that every probe changes in one place."""
        return self._probes[0].assignment

    @property
    def base_loss(self) -> float | None:
        """Return the reference's loss, or None where it was not or could not be measured."""
        return self._measured.get(self._probes[0].key)

    def tell_probe(self, key: str, loss: float | None) -> None:
        """Take a probe's loss (KL in nats), or None where it could not be measured."""
        self._measured[key] = loss

    @cached_property
    def table(self) -> SensitivityTable:
        """The sensitivity table. Raises RuntimeError while probes are pending."""
        if self.pending_probes():
            raise RuntimeError(f"{len(self.pending_probes())} sensitivity probes are pending")
        return build_table(self.goal.graph, self.goal.space, self._measured, self.settings.max_probes)
