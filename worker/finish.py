"""The end of a search: hold-out re-score of the best, candidates, exports, verification, outcome."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.domain.artefacts import suffix_of
from app.domain.budget import table, with_measured
from app.domain.cost import count, layer_costs
from app.domain.demand import Timing, is_host
from app.domain.lifecycle import Outcome, Verification
from app.domain.metrics import badness
from app.domain.quality import quality_of
from app.domain.space import Assignment
from app.store import runner as rows
from app.store import timings
from worker.baseline import NAMED, baseline_problem
from worker.job import GivenUp, Job, Site, problem
from worker.measured import Measured
from worker.provenance import provenance, versions
from worker.quant.steps import Polished, polish
from worker.sandbox import EXPORT_S, ChildDied
from worker.search.loop import SearchLoop
from worker.search.rows import Goal, TrialRow
from worker.stages import Stages, Tuned, behind, network_of
from worker.telling import told

Json = dict[str, Any]
Item = tuple[Assignment, str, str]
Measure = Callable[[Job, Sequence[Item]], list[Json]]
Call = Callable[[Job, str, Json, float], Json]

RESCORED = 8
POLISHED = 2


class Finisher:
    """Turns the trials of a search into candidates and verified files."""

    def __init__(
        self, site: Site, job: Job, loop: SearchLoop, measure: Measure, call: Call, measured: Measured | None = None
    ) -> None:
        self.site, self.job, self.loop, self.measured = site, job, loop, measured
        self._measure, self._call = measure, call
        self._quality = quality_of(job.spec)
        self._baseline: Json | None = None
        self._polish: dict[int, Polished] = {}
        self._trained: dict[int, Tuned] = {}

    def run(self) -> Outcome:
        """Re-score, store, export and verify; return the outcome."""
        chosen, feasible = self._chosen()
        if not chosen:
            return Outcome.none
        ranked = self._ranked(chosen)
        if not ranked:
            return Outcome.none
        feasible = feasible and (self._quality is None or any(self._judged(found)["met"] for _, found in ranked))
        ids = [self._store(rank, row, holdout) for rank, (row, holdout) in enumerate(ranked, start=1)]
        wanted = [(candidate_id, row) for candidate_id, (row, _) in zip(ids, ranked, strict=True)]
        if self._is_front:  # the files are points far from each other, not the best ones
            wanted.sort(key=lambda pair: chosen.index(pair[1]))
        verified = 0
        for candidate_id, row in wanted:
            if verified >= self.job.export_top:
                break
            verified += self._export(candidate_id, row) is Verification.verified
        return Outcome.feasible if feasible else Outcome.best_effort

    def to_score(self) -> list[Item]:
        """Return what will be measured on the hold-out set: the baseline, then what was chosen."""
        chosen = self._chosen()[0]
        plain = chosen[self._polished :] if self.job.polish else chosen  # the first will be polished before
        return [self._holdout(row) for row in [self.loop.row(0), *plain]]

    def polish_share(self, slot: int, size: int) -> None:
        """Polish one runner's share of the best and measure it on the hold-out set; `run` finds the results stored."""
        if self.job.polish:
            for row in self._chosen()[0][: self._polished][slot::size]:
                self._polish_one(row)
                self._scored(self._holdout(row))

    @property
    def _is_front(self) -> bool:
        return bool(self.job.settings.axes)

    @property
    def _polished(self) -> int:
        """Return how many of what was chosen are polished: of a front all that are delivered."""
        return max(POLISHED, self.job.export_top) if self._is_front else POLISHED

    def _chosen(self) -> tuple[list[TrialRow], bool]:
        """Return the finalists (of a front, points far from each other), or where there are none the trial that breaks
        the limits least; and which it is."""
        loop, measured = self.loop, self.measured
        if measured is not None:
            finalists = measured.finalists(loop, RESCORED)
            return finalists or measured.best_effort(loop, 1), bool(finalists)
        finalists = loop.spread(RESCORED) if self._is_front else loop.finalists(RESCORED)
        return finalists or loop.best_effort(1), bool(finalists)

    def _ranked(self, chosen: list[TrialRow]) -> list[tuple[TrialRow, Json]]:
        """Measure on the hold-out set, the baseline too; order by the search's metric there, then by the loss."""
        base = self.loop.row(0)
        self._polish_best(chosen)
        self._train_best(chosen)
        scored = [self._checked(self._holdout(base)), *(self._scored(self._holdout(row)) for row in chosen)]
        if self._quality is not None and self._quality.metric not in (scored[0] or {"metrics": {}})["metrics"]:
            detail = f"the float network's {self._quality.metric} could not be measured on the hold-out set"
            raise GivenUp(problem("baseline-invalid", detail))
        if scored[0] is not None:
            self._baseline = scored[0]["metrics"]
            baseline = {"metrics": dict(base.metrics), "holdout": scored[0]["metrics"]}
            baseline |= {"costs": self.loop.costs(base.assignment).to_json(), "warnings": self._warnings()}
            with self.site.database.writing() as session:
                rows.progress(session, self.job.search_id, {"baseline": baseline})
        pairs = [(row, found) for row, found in zip(chosen, scored[1:], strict=True) if found is not None]
        metric = self.job.metric
        return sorted(pairs, key=lambda pair: (badness(pair[1]["metrics"], metric), pair[1]["metrics"]["kl"]))

    def _polish_best(self, chosen: list[TrialRow]) -> None:
        """Polish the first few of what was chosen; one whose polish fails stays as it is."""
        if not self.job.polish:
            return
        with self.site.database.writing() as session:
            rows.progress(session, self.job.search_id, {"stage": "polish"})
        for row in chosen[: self._polished]:
            self._polish_one(row)

    def _polish_one(self, row: TrialRow) -> None:
        if row.idx not in self._polish:
            with suppress(ArithmeticError):
                self._polish[row.idx] = polish(self._repair(row), functools.partial(self._loss, row.assignment))

    def _train_best(self, chosen: list[TrialRow]) -> None:
        """Apply the methods that are asked for to the best of what was chosen, by the loss behind the polish."""
        if not self.job.methods:
            return
        with self.site.database.writing() as session:
            rows.progress(session, self.job.search_id, {"stage": "train"})
        stages = Stages(self.site, self.job, self._call, self._evaluated)
        best = min(chosen[: self._polished], key=self._polished_loss)
        self._trained[best.idx] = stages.of(best, self._repair(best))

    def _evaluated(self, row: TrialRow, repair: str) -> Json | None:
        return self._scored((row.assignment, "full", repair))

    def _polished_loss(self, row: TrialRow) -> float:
        found = self._evaluated(row, self._repair(row))
        return math.inf if found is None else float(found["metrics"]["kl"])

    def _loss(self, assignment: Assignment, repair: str) -> float:
        """Return a network's loss on the evaluation pictures. Raises ArithmeticError where it can't be measured."""
        found = self._scored((assignment, "full", repair))
        if found is None:
            raise ArithmeticError(repair)
        return float(found["metrics"]["kl"])

    def _repair(self, row: TrialRow) -> str:
        if row.idx in self._trained:
            return self._trained[row.idx].repair
        found = self._polish.get(row.idx)
        return row.repair or "sequential" if found is None else found.repair

    def _assignment(self, row: TrialRow) -> Assignment:
        """Return the delivered network's channels and bits: the trial's, or those that a method brought."""
        return self._trained[row.idx].row.assignment if row.idx in self._trained else row.assignment

    def _holdout(self, row: TrialRow) -> Item:
        return self._assignment(row), "holdout", self._repair(row)

    def _checked(self, item: Item) -> Json | None:
        """Return the float network's measurement. Raises GivenUp where its answers can't be compared with."""
        try:
            found = self._measure(self.job, [item])[0]
        except ChildDied:
            return None
        if (found.get("failure") or {}).get("kind") in NAMED:
            raise GivenUp(baseline_problem(found["failure"], "hold-out"))
        return found.get("measurement")

    def _warnings(self) -> list[str]:
        with self.site.database.reading() as session:
            return (rows.search_of(session, self.job.search_id).baseline or {}).get("warnings") or []

    def _scored(self, item: Item) -> Json | None:
        try:
            return self._measure(self.job, [item])[0].get("measurement")
        except ChildDied:
            return None

    def _store(self, rank: int, row: TrialRow, holdout: Json) -> str:
        goal, assignment = self.job.goal, self._assignment(row)
        costs = self.loop.costs(assignment)
        fields: Json = {
            "trial_idx": row.idx,
            "rank": rank,
            "assignment": assignment.to_json(),
            "costs": costs.to_json(),
            "metrics": {
                "metric": self.job.metric,
                "evaluation": dict(row.metrics),
                "holdout": holdout["metrics"],
                "holdout_pictures": holdout["pictures"],
            },
            "layers": layer_table(goal, assignment),
            "budget": [item.to_json() for item in table(goal.budget, costs.to_json(), {}, goal.device)],
            "feasible": goal.budget.is_met(costs),
        }
        if row.idx in self._polish or row.idx in self._trained:
            delivered = replace(row, assignment=assignment)
            final = self._evaluated(delivered, self._repair(row)) or {"metrics": row.metrics}
            fields["metrics"]["evaluation"] = final["metrics"]
        if row.idx in self._polish:
            fields["metrics"]["polish"] = self._polish[row.idx].to_json()
        if row.idx in self._trained:
            fields["metrics"]["training"] = self._told_of_training(row)
        if self.measured is not None:
            fields |= self._measured_fields(fields, row)
        if self._quality is not None:
            judged = self._judged(holdout)
            fields |= {
                "feasible": fields["feasible"] and judged["met"],
                "metrics": {**fields["metrics"], "quality": judged},
            }
        with self.site.database.writing() as session:
            return rows.put_candidate(session, self.job.search_id, fields)

    def _told_of_training(self, row: TrialRow) -> Json:
        """Return the repair that names the trained network, and each method's step with both networks on the hold-out
        pictures, which decided nothing."""
        told = []
        for step in self._trained[row.idx].steps:
            told.append(self._with_holdout(row, step))
            row = behind(row, step) if step["kept"] else row
        return {"repair": self._repair(row), "steps": told}

    def _with_holdout(self, row: TrialRow, step: Json) -> Json:
        networks = {"before": (row, step["repair"]), "after": (behind(row, step), step["network"])}
        found = {
            key: name and self._scored((item.assignment, "holdout", name)) for key, (item, name) in networks.items()
        }
        return {**step, "holdout": {key: item and item["metrics"] for key, item in found.items()}}

    def _judged(self, holdout: Json) -> Json:
        """Return whether a candidate keeps the quality that was asked for."""
        assert self._quality is not None and self._baseline is not None, "asked only where a quality is"
        return self._quality.judged(holdout["metrics"], self._baseline)

    def _measured_fields(self, fields: Json, row: TrialRow) -> Json:
        """Return what a measured latency changes in a candidate's record: its budget row, feasibility and metrics."""
        assert self.measured is not None
        facts, device = self.measured.facts(row.assignment), self.job.goal.device
        found = with_measured(table(self.job.goal.budget, fields["costs"], {}, device), facts)
        return {
            "budget": [item.to_json() for item in found],
            "feasible": all(item.met for item in found),
            "metrics": {**fields["metrics"], "latency": facts},
        }

    def _export(self, candidate_id: str, row: TrialRow) -> Verification:
        with self.site.database.writing() as session:
            rows.progress(session, self.job.search_id, {"stage": "export"})
        return export_candidate(self.site, self.job, candidate_id, row.repair, self._call)


def export_candidate(site: Site, job: Job, candidate_id: str, repair: str | None, call: Call) -> Verification:
    """Export one candidate in the child, store its files and verification; return whether it was verified.

    `repair` is the trial's; the record of a candidate that was polished or trained names its own.
    """
    with site.database.reading() as session:
        row = rows.candidate(session, candidate_id)
        assert row is not None
        if row.export_state == "done":
            return Verification(row.verification)
        manifest = _manifest(job, row.metrics, row.feasible)
        repair, assignment = repair_of(row.metrics) or repair, Assignment.from_json(row.assignment)
        around = told(session, job, row, repair or "sequential")
    with tempfile.TemporaryDirectory(prefix="tightfit-export-") as name:
        params = {
            "assignment": assignment.to_json(),
            "repair": repair,
            **network_of(site, repair or ""),
            "limits": dict(job.goal.budget.limits),
            "manifest": manifest,
            "folder": name,
            "measured": row.metrics.get("latency"),
            "told": around,
            "origin": _origin(job, candidate_id),
            "opset": job.opset,
        }
        try:
            result = call(job, "export", params, EXPORT_S)
        except ChildDied as death:
            with site.database.writing() as session:
                rows.export_failed(session, candidate_id, problem("export-failed", f"{death.kind}: {death.detail}"))
            return Verification.failed
        _note_latency(site, job, assignment, result["report"])
        return _stored(site, job, candidate_id, Path(name), result)


def repair_of(metrics: Json) -> str | None:
    """Return the repair that names a candidate's network, from its record: that behind training, else the polish."""
    for name in ("training", "polish"):
        if metrics.get(name):
            return str(metrics[name]["repair"])
    return None


def _origin(job: Job, candidate_id: str) -> Json:
    """Return what a candidate comes from, as its config tells: network and datasets by digest, device, options."""
    digests = job.names["datasets"]
    return {
        "candidate": candidate_id,
        "model": {"name": job.names["model"], "sha256": job.names["model_sha256"],
                  "weights_sha256": job.names["weights_sha256"]},
        "datasets": {role: {"sha256": digests[role], "spec": item["spec"]}
                     for role, item in job.opening["datasets"].items()},
        "device": job.opening["device"],
        "options": job.opening["options"],
    }  # fmt: skip


def _stored(site: Site, job: Job, candidate_id: str, folder: Path, result: Json) -> Verification:
    files = []
    for file in result["files"]:
        sha256, size = site.blobs.put_file(folder / file["name"])
        filename = f"{job.names['model']}-{candidate_id}{suffix_of(file['kind'])}"
        files.append({"kind": file["kind"], "sha256": sha256, "bytes": size, "filename": filename})
    outcome = {"verification": result["verification"], "report": result["report"]}
    outcome["budget"] = result["report"].get("budget")
    with site.database.writing() as session:
        rows.exported(session, candidate_id, files, outcome)
    return Verification(result["verification"])


def _note_latency(site: Site, job: Job, assignment: Assignment, report: Json) -> None:
    """Keep the latency that a verification measured on this host beside the model's, to tell drift by."""
    latency = report.get("latency") or {}
    if not is_host(job.goal.device.name) or "compressed" not in latency:
        return
    modelled = count(job.goal.graph, assignment, job.goal.device).latency_ms
    found = Timing(assignment.digest, modelled, latency["compressed"], latency["float"])
    with site.database.writing() as session:
        timings.store(session, rows.search_of(session, job.search_id), [found])


def layer_table(goal: Goal, assignment: Assignment) -> list[Json]:
    """Return one row per layer: widths, bits and costs, for the per-layer picture."""
    full = {group.id: group.channels for group in goal.graph.groups}
    found = []
    for cost in layer_costs(goal.graph, assignment, goal.device):
        layer = goal.graph.layer[cost.name]
        whole = layer.out_width.kept(full)
        output = None if layer.output is None else assignment.activation_bits[layer.output]
        found.append(
            {
                "name": cost.name,
                "kind": layer.kind,
                "in_channels": cost.in_channels,
                "out_channels": cost.out_channels,
                "full_out_channels": whole,
                "keep_ratio": cost.out_channels / whole,
                "weight_bits": cost.weight_bits,
                "input_bits": cost.input_bits,
                "output_bits": output,
                "macs": cost.macs,
                "bops": cost.bops,
                "weight_bytes": cost.weight_bytes,
                "latency_ms": cost.latency_ms,
            }
        )
    return found


def _manifest(job: Job, metrics: Json, feasible: bool) -> Json:
    return {
        "search_id": job.search_id,
        "request": job.spec,
        **({} if job.opening["datasets"] else {"no_data": True}),
        "names": job.names,
        "metric": job.metric,
        "metrics": metrics,
        "meets_budget": feasible,
        "seed": job.settings.seed,
        "versions": versions(),
        "provenance": {key: value for key, value in provenance(job).items() if key not in ("seed", "versions")},
    }
