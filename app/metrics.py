"""What Prometheus is told of searches, trials, queues, workers and disk: read from the tables when it asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session

from app import queue
from app.actions import Service
from app.store import query
from app.store.tables import Dataset, Model, Search, Trial, now

SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


class Tables(Collector):
    """One look at the tables."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        with self._service.database.reading() as session:
            yield from _states(session)
            yield from _trials(session)
            yield self._workers(session)
        yield from self._queues()
        free = GaugeMetricFamily("tightfit_disk_free_bytes", "free bytes of the blob folder")
        free.add_metric([], self._service.blobs.free_bytes())
        yield free

    def _workers(self, session: Session) -> Metric:
        found = GaugeMetricFamily("tightfit_workers", "workers by whether they were heard of lately", labels=["state"])
        silence_s, moment = self._service.settings.worker_silence_s, now()
        alive = [(moment - row.last_seen).total_seconds() < silence_s for row in query.workers(session)]
        found.add_metric(["alive"], sum(alive))
        found.add_metric(["silent"], len(alive) - sum(alive))
        return found

    def _queues(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily("tightfit_queue_depth", "jobs that wait on a queue", labels=["queue"])
        age = GaugeMetricFamily("tightfit_queue_age_seconds", "seconds the oldest of them has waited", labels=["queue"])
        for name, (count, age_s) in queue.depths(self._service.client).items():
            depth.add_metric([name], count)
            age.add_metric([name], age_s)
        yield from (depth, age)


def _states(session: Session) -> Iterator[Metric]:
    tables: dict[str, Any] = {"searches": Search, "models": Model, "datasets": Dataset}
    for name, table in tables.items():
        found = GaugeMetricFamily(f"tightfit_{name}", f"{name} by state", labels=["state"])
        for state, number in query.counts(session, table).items():
            found.add_metric([state], number)
        yield found


def _trials(session: Session) -> Iterator[Metric]:
    """Yield trials by state, failures by class, and how long trials took. Rates are taken by who reads them."""
    trials = CounterMetricFamily("tightfit_trials", "trials that were begun, by state", labels=["state"])
    for state, number in query.counts(session, Trial).items():
        trials.add_metric([state], number)
    failures = CounterMetricFamily("tightfit_trial_failures", "failed trials by class", labels=["class"])
    kind = Trial.failure["kind"].as_string()
    for name, number in session.execute(
        sa.select(kind, sa.func.count()).where(Trial.failure.is_not(None)).group_by(kind)
    ):
        failures.add_metric([name or "unknown"], number)
    yield from (trials, failures, _seconds(session))


def _seconds(session: Session) -> Metric:
    below = [sa.func.count(sa.case((Trial.seconds <= edge, 1))) for edge in SECONDS]
    row = session.execute(
        sa.select(*below, sa.func.count(Trial.seconds), sa.func.coalesce(sa.func.sum(Trial.seconds), 0.0))
    ).one()
    *counts, total, seconds = row
    buckets = [*zip(map(str, SECONDS), counts, strict=True), ("+Inf", total)]
    found = HistogramMetricFamily("tightfit_trial_seconds", "seconds that trials took")
    found.add_metric([], buckets, float(seconds))
    return found
