"""States and the moves between them. State, outcome and verification are three separate things."""

from __future__ import annotations

from enum import StrEnum


class ModelState(StrEnum):
    """Where an upload, network or dataset, stands."""

    inspecting = "inspecting"  #: bytes stored, waiting for the sandboxed reader
    ready = "ready"  #: read; its picture is known
    rejected = "rejected"  #: refused with a named problem


class SearchState(StrEnum):
    """Where a search stands."""

    queued = "queued"
    running = "running"
    pausing = "pausing"  #: asked to pause: the trial in flight is finished first
    paused = "paused"
    cancelling = "cancelling"
    cancelled = "cancelled"
    completed = "completed"
    failed = "failed"

    @property
    def is_finished(self) -> bool:
        """Tell whether nothing more will happen."""
        return self in _FINISHED


class TrialState(StrEnum):
    """Where a trial stands."""

    running = "running"
    done = "done"
    failed = "failed"


class Outcome(StrEnum):
    """What a completed search found."""

    feasible = "feasible"  #: a candidate keeps every limit
    best_effort = "best_effort"  #: none does; the least violating one is handed back
    none = "none"  #: nothing could be measured


class Verification(StrEnum):
    """Whether an artefact was re-run and agreed with the simulation."""

    unverified = "unverified"
    verified = "verified"
    failed = "failed"


_FINISHED = {SearchState.cancelled, SearchState.completed, SearchState.failed}
# fmt: off
_MOVES = {
    SearchState.queued: {
        SearchState.running, SearchState.paused, SearchState.cancelling, SearchState.cancelled, SearchState.failed,
    },
    SearchState.running: {
        SearchState.completed, SearchState.failed, SearchState.pausing, SearchState.paused, SearchState.cancelling,
    },
    SearchState.pausing: {
        SearchState.paused, SearchState.running, SearchState.completed, SearchState.failed, SearchState.cancelling,
    },
    SearchState.paused: {SearchState.queued, SearchState.cancelled},
    SearchState.cancelling: {SearchState.cancelled},
}
# fmt: on


def can_move(old: SearchState, new: SearchState) -> bool:
    """Tell whether a search may go from `old` to `new`."""
    return new in _MOVES.get(old, set())
