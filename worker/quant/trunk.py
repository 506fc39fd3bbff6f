"""What probes of one base assignment have in common: a pass that stands ahead of the first layer they change.

A probe differs from the base in one place, and nothing ahead of that place depends on it. The trunk walks the base
forward once, over the calibration pictures (compressing) and over the pictures to be measured; each probe branches off
where it begins to differ. The results are those of compressing and running the probe by itself, bit for bit: the same
operations on the same numbers. Memory: the values alive at one place of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from app.domain.space import Assignment
from worker.graph.sites import quantizer_sites
from worker.quant.compressor import Compressor, Job, Repair, node_of
from worker.quant.simulation import Simulation
from worker.quant.walk import Walk


class Trunk:
    """Walks a base assignment and branches off it. `batches` are the pictures to be measured, by network input."""

    def __init__(
        self, compressor: Compressor, base: Assignment, repair: Repair, batches: Sequence[tuple[Tensor, ...]]
    ) -> None:
        self.compressor, self.base, self.repair = compressor, base, repair
        self._batches = tuple(batches)
        self._steps = {node.name: step for step, node in enumerate(compressor.slicer.module.graph.nodes)}
        self._first = self._first_steps()
        self._plant()

    @property
    def step(self) -> int:
        """Return the step the trunk has come to."""
        return self._calibration.step

    def outputs(self, assignment: Assignment) -> list[Any]:
        """Return the compressed network's outputs per batch, as `CompressedNetwork.forward` gives them.

        Assignments ahead of which the trunk already is start it anew: ask in the order of `first_change`.
        """
        change = self.first_change(assignment)
        step = self.step if change is None else change
        if step < self.step:
            self._plant()
        self._grow_to(step)
        job, calibration = self.compressor.job(assignment, self.repair), self._calibration.fork()
        job.take(self._job, {name for name, at in self._steps.items() if at < step})
        measured = [walk.fork() for walk in self._measured]
        _grow(job, calibration, measured, None)
        return [walk.outputs(job.module) for walk in measured]

    def first_change(self, assignment: Assignment) -> int | None:
        """Return the first step at which an assignment's network differs from the base's, or None where none does."""
        base = self.base
        parts = (
            ("keep", base.keep, assignment.keep),
            ("weight", base.weight_bits, assignment.weight_bits),
            ("activation", base.activation_bits, assignment.activation_bits),
        )
        changed = [
            self._first[kind, name] for kind, old, new in parts for name, value in new.items() if old[name] != value
        ]
        return min(changed, default=None)

    def _grow_to(self, step: int) -> None:
        try:
            _grow(self._job, self._calibration, self._measured, step)
        except BaseException:
            self._plant()  # a walk that broke off between two nodes can't go on
            raise

    def _plant(self) -> None:
        self._job = self.compressor.job(self.base, self.repair)
        self._calibration = Walk(self.compressor.looked_at(self.repair))
        self._measured = [Walk(inputs) for inputs in self._batches]

    def _first_steps(self) -> dict[tuple[str, str], int]:
        """Return by choice (kind, name) the first step it has a say in."""
        graph, plan = self.compressor.graph, self.compressor.slicer.plan
        found = {("weight", layer.name): self._steps[node_of(layer.name)] for layer in graph.layers}
        # a fused chain is quantized where it begins
        sites = quantizer_sites(self.compressor.slicer.module).sites
        found |= {("activation", site.id): self._steps[site.head] for site in sites}
        for (name, _), dim in plan.dims.items():
            step = self._steps[node_of(name)]
            for group, _ in dim.width.terms:
                found["keep", group] = min(step, found.get(("keep", group), step))
        return found


def _grow(job: Job, calibration: Walk, measured: Sequence[Walk], step: int | None) -> None:
    """Compress up to a step (None: to the end) and run what is compressed on the pictures to be measured."""
    simulation = Simulation(job, calibration.step, step, job.before)
    for walk in (calibration, *measured):
        simulation.advance(walk)
