"""The runners of one search: who does what, and that it makes no difference to what is found."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa

from app.domain.budget import Limit
from app.store import runners
from app.store.tables import Runner as RunnerRow
from app.store.tables import Trial, now
from tests.reliability.rig import Rig
from worker import crew
from worker.crew import Crew
from worker.job import Ended, LostTrial, Site
from worker.runner import Runner

TRIALS = 16
LIMITS = (Limit("bops", relative=0.4),)


def site(rig: Rig, **fields: Any) -> Site:
    return dataclasses.replace(Site(rig.database, rig.blobs), **fields)


def placed(slot: int, size: int) -> Crew:
    found = Crew(None, "srh_x", slot)  # type: ignore[arg-type]  # shares need no database
    found.size = size
    return found


def story(trials: list[Trial]) -> list[tuple[Any, ...]]:
    return [(trial.idx, trial.kind, trial.assignment, trial.state, trial.metrics) for trial in trials]


def together(runners: list[Runner]) -> list[str]:
    """Let runners work at the same time; return how each ended."""
    ends: list[str] = []
    threads = [threading.Thread(target=lambda r=item: ends.append(r.run()), daemon=True) for item in runners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return ends


def forget(rig: Rig) -> None:
    """Forget every measurement, so that the next search makes its own."""
    with rig.database.writing() as session:
        session.execute(sa.text("DELETE FROM evaluation"))


def test_share_when_two_runners_work_then_each_begins_its_own_half_in_order() -> None:
    items = [[n] for n in range(20)]
    assert placed(0, 2).share(items, items, 4) == [[0], [1], [2], [3]]
    assert placed(1, 2).share(items, items, 4) == [[10], [11], [12], [13]]
    assert placed(0, 1).share(items, items, 4) == [[0], [1], [2], [3]]


def test_share_when_the_own_half_is_done_then_the_second_half_of_what_is_left_of_the_others() -> None:
    items = [[n] for n in range(20)]
    assert placed(1, 2).share(items, items[2:10], 8) == [[6], [7], [8], [9]]
    assert placed(1, 2).share(items, items[9:10], 8) == [[9]]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_share_when_runners_take_turns_then_everything_is_done_once(size: int) -> None:
    items = [[n] for n in range(23)]
    crews, done = [placed(slot, size) for slot in range(size)], []
    while len(done) < len(items):
        for member in crews:
            left = [item for item in items if item not in done]
            done += member.share(items, left, 3) if left else []
    assert sorted(done) == items


def test_turned_when_two_runners_then_they_begin_at_opposite_places() -> None:
    assert placed(0, 2).turned([0, 1, 2, 3, 4]) == [0, 1, 2, 3, 4]
    assert placed(1, 2).turned([0, 1, 2, 3, 4]) == [2, 3, 4, 0, 1]
    assert placed(1, 2).turned([]) == []


def test_run_when_two_runners_share_a_search_then_the_trials_of_one(rig: Rig) -> None:
    alone = rig.add_search(TRIALS, limits=LIMITS, export_top=0)
    assert Runner(site(rig), alone).run() == "finished"
    forget(rig)
    shared = rig.add_search(TRIALS, limits=LIMITS, export_top=0, runners=2)
    assert together([Runner(site(rig), shared, slot) for slot in (0, 1)]) == ["finished", "finished"]
    trials, search = rig.trials(shared), rig.search(shared)
    assert story(trials) == story(rig.trials(alone))
    assert {trial.attempt for trial in trials} == {1}
    assert len({(trial.owner_token or "")[:2] for trial in trials}) == 2
    assert (search.state, search.outcome) == ("completed", "feasible")
    assert search.best == rig.search(alone).best
    assert [c.metrics for c in rig.candidates(shared)] == [c.metrics for c in rig.candidates(alone)]


class Noting(Runner):
    """A runner that keeps which polished networks it measured."""

    def measure(self, job: Any, items: Any, base: Any = None) -> list[Any]:
        self.__dict__.setdefault("polished", set()).update(item[0].digest for item in items if "+" in item[2])
        return super().measure(job, items, base)


def test_run_when_two_runners_share_a_search_then_each_polishes_one_of_the_best_and_all_is_as_with_one(
    rig: Rig,
) -> None:
    alone = rig.add_search(TRIALS, limits=LIMITS, export_top=0, polish=True)
    assert Runner(site(rig), alone).run() == "finished"
    forget(rig)
    shared = rig.add_search(TRIALS, limits=LIMITS, export_top=0, polish=True, runners=2)
    pair = [Noting(site(rig), shared, slot) for slot in (0, 1)]
    assert together(list(pair)) == ["finished", "finished"]
    assert [c.metrics for c in rig.candidates(shared)] == [c.metrics for c in rig.candidates(alone)]
    counts = sorted(len(item.__dict__["polished"]) for item in pair)
    assert counts == [1, 2]  # the one that ends the search finds the other's share stored


def test_run_when_a_runner_fell_silent_then_the_other_takes_its_trial(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "SILENCE_S", 3.0)
    monkeypatch.setattr(crew, "BEAT_S", 0.2)
    search = rig.add_search(TRIALS, limits=LIMITS, export_top=0, runners=2)
    silent, other, struck = Runner(site(rig), search, 1), Runner(site(rig), search, 0), threading.Event()
    attempt = silent._attempt

    def stopped(*arguments: Any) -> Any:
        """Stop in the middle of a trial as a suspended machine does, until the search is over."""
        if arguments[1].idx >= 2:
            struck.set()
            while rig.search(search).finished_at is None:
                time.sleep(0.05)
        return attempt(*arguments)

    silent._attempt = stopped  # type: ignore[method-assign]
    ends: list[str] = []
    thread = threading.Thread(target=lambda: ends.append(silent.run()), daemon=True)
    thread.start()
    assert struck.wait(120), "the first runner holds a trial before the other begins"
    assert other.run() == "finished"
    thread.join(120)
    assert ends == ["finished"]
    trials = rig.trials(search)
    assert [trial.state for trial in trials] == ["done"] * (TRIALS + 1)
    assert sorted(trial.attempt for trial in trials)[-2:] == [1, 2]
    assert rig.search(search).state == "completed"


def test_run_when_its_slot_was_taken_then_the_zombie_leaves(rig: Rig) -> None:
    search = rig.add_search(TRIALS, limits=LIMITS, export_top=0, runners=2)
    zombie = Runner(site(rig), search, 0)
    finish = zombie._finish

    def overtaken(*arguments: Any) -> None:
        finish(*arguments)
        Runner(site(rig, slice_s=0.0), search, 0).run()

    zombie._finish = overtaken  # type: ignore[method-assign]
    with pytest.raises(LostTrial):
        zombie.run()
    assert rig.search(search).state == "running"


def test_run_when_cancelled_then_both_runners_end(rig: Rig) -> None:
    search = rig.add_search(2000, seed=5, limits=LIMITS, runners=2)
    pair = [Runner(site(rig), search, slot) for slot in (0, 1)]

    def strike() -> None:
        while rig.done(search) < 3:
            time.sleep(0.01)
        rig.cancel(search)

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    assert together(pair) == ["finished", "finished"]
    assert rig.search(search).state == "cancelled"
    assert "running" not in {trial.state for trial in rig.trials(search)}
    assert all(item._child is None for item in pair)


def test_take_end_when_the_one_that_ends_lives_then_no_other_does(rig: Rig) -> None:
    search = rig.add_search(TRIALS, limits=LIMITS, export_top=0, runners=2)
    first, second = Crew(site(rig), search, 0), Crew(site(rig), search, 1)
    first.enter(2)
    second.enter(2)
    assert (first.takes_end(), second.takes_end(), first.takes_end()) == (True, False, True)
    with rig.database.writing() as session:
        session.execute(
            sa.update(RunnerRow).where(RunnerRow.token == first.token).values(seen_at=now().replace(year=2020))
        )
    assert second.takes_end()
    first.leave()
    with rig.database.reading() as session:
        assert runners.alive(session, search, 15.0) == {second.token}


def test_wait_when_the_search_is_over_then_ended(rig: Rig) -> None:
    search = rig.add_search(TRIALS, limits=LIMITS, export_top=0, runners=2)
    waiting = Crew(site(rig), search, 1)
    waiting.enter(2)
    waiting.wait()
    rig.cancel(search)
    assert Runner(site(rig), search).run() == "finished"
    with pytest.raises(Ended):
        waiting.wait()
