"""Tables corrected by trials."""

from __future__ import annotations

import numpy as np

from app.domain.space import Assignment, SearchSpace, build_space
from tests.worker.search.pictures import chain, device, random_table
from worker.search.refit import Observation, Posterior
from worker.search.sensitivity import SensitivityTable


def drawn(space: SearchSpace, rng: np.random.Generator) -> Assignment:
    return Assignment(
        {name: int(rng.choice(options)) for name, options in space.keep.items()},
        {name: int(rng.choice(options)) for name, options in space.weight_bits.items()},
        {name: int(rng.choice(options)) for name, options in space.activation_bits.items()},
    )


def case() -> tuple[SearchSpace, SensitivityTable, SensitivityTable]:
    """Return a space, a table, and the truth: one group hurts three times as much as the table says."""
    space = build_space(chain(), device())
    table = random_table(space, 0)
    keep = {**table.curves["keep"], "g1": {v: 3 * loss for v, loss in table.curves["keep"]["g1"].items()}}
    return space, table, SensitivityTable(table.base, {**table.curves, "keep": keep})


def test_posterior_when_trials_disagree_with_the_table_then_the_mean_moves_to_the_truth() -> None:
    space, table, truth = case()
    rng = np.random.default_rng(0)
    observed = [Observation(one, truth.loss(one)) for one in (drawn(space, rng) for _ in range(60))]
    refitted = Posterior(space, table, observed).mean()
    unseen = [drawn(space, rng) for _ in range(50)]
    before = np.mean([abs(table.loss(one) - truth.loss(one)) for one in unseen])
    after = np.mean([abs(refitted.loss(one) - truth.loss(one)) for one in unseen])
    assert after < 0.4 * before


def test_posterior_when_trials_agree_with_the_table_then_the_mean_is_the_table() -> None:
    space, table, _ = case()
    rng = np.random.default_rng(1)
    observed = [Observation(one, table.loss(one)) for one in (drawn(space, rng) for _ in range(10))]
    refitted = Posterior(space, table, observed).mean()
    one = drawn(space, rng)
    assert abs(refitted.loss(one) - table.loss(one)) < 1e-6


def test_posterior_when_drawn_twice_with_one_seed_then_the_same_table_and_another_with_another() -> None:
    space, table, truth = case()
    rng = np.random.default_rng(2)
    posterior = Posterior(space, table, [Observation(one, truth.loss(one)) for one in [drawn(space, rng)] * 3])
    assert posterior.draw(7) == posterior.draw(7)
    assert posterior.draw(7) != posterior.draw(8)
    assert all(loss >= 0 for curve in posterior.draw(7).curves["keep"].values() for loss in curve.values())


def test_posterior_when_assignments_were_written_and_read_then_is_the_same_to_the_last_bit() -> None:
    space, table, truth = case()
    rng = np.random.default_rng(3)
    observed = [Observation(one, truth.loss(one)) for one in (drawn(space, rng) for _ in range(20))]
    read = [Observation(Assignment.from_json(item.assignment.to_json()), item.loss) for item in observed]
    assert Posterior(space, table, observed).draw(4) == Posterior(space, table, read).draw(4)


def test_posterior_when_observations_outnumber_the_terms_then_says_what_the_larger_matrix_would() -> None:
    space, table, truth = case()
    rng = np.random.default_rng(4)
    observed = [Observation(one, truth.loss(one)) for one in (drawn(space, rng) for _ in range(200))]
    posterior = Posterior(space, table, observed)
    weighted = posterior._features @ posterior._root
    assert weighted.shape[0] > weighted.shape[1]
    whole = weighted.T @ np.linalg.inv(weighted @ weighted.T + np.diag(posterior._noise))
    np.testing.assert_allclose(posterior._gain, posterior._root @ whole, atol=1e-6)
