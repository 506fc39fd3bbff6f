"""What is wrong with a float network that nothing can be compared with, and what is suspicious about one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.domain.metrics import is_guessing
from worker.job import Job, problem

Json = dict[str, Any]
GUESSING = "baseline-is-guessing"
NAMED = {
    "not-finite": (
        "baseline-not-finite",
        "check the dataset's scale, mean and std, and that the network itself answers these rows with numbers",
    ),
    "constant-outputs": (
        "constant-outputs",
        "check that the file holds the trained weights, and that layout and scale are those of the training",
    ),
}


def baseline_problem(failure: Mapping[str, Any], role: str) -> Json:
    """Return the problem that ends a search whose float network can't be measured on a role's rows, given the failure
    {kind, detail} of its measurement."""
    slug, advice = NAMED.get(str(failure.get("kind")), ("baseline-invalid", ""))
    reason = str(failure.get("detail") or "no measurement came back")
    told = f"the float network can't be measured on the {role} set: {reason}"
    return problem(slug, f"{told}; {advice}" if advice else told)


def baseline_warnings(job: Job, measurement: Mapping[str, Any]) -> list[str]:
    """Return what is suspicious about the float network's measurement: that its answers are no better than guessed."""
    accuracy = measurement["metrics"].get("accuracy")
    if accuracy is None or job.classes is None:
        return []
    return [GUESSING] if is_guessing(accuracy, job.classes, measurement["pictures"]) else []
