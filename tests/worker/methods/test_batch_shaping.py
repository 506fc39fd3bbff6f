"""The batch-shaping loss beside its published numbers: channels, precision, memory of earlier batches, time."""

from __future__ import annotations

import time

import pytest
import torch

from worker.methods.batch_shaping import BatchShaping, batch_shaping


def test_loss_when_channels_are_several_then_the_mean_of_each() -> None:
    values = torch.rand(40, 5, dtype=torch.float64)
    alone = [batch_shaping(values[:, index : index + 1]).item() for index in range(5)]
    assert batch_shaping(values).item() == pytest.approx(sum(alone) / 5, rel=1e-12)


def test_gradient_when_compared_with_autograds_check_then_equal() -> None:
    torch.manual_seed(0)
    values = (torch.rand(12, 3, dtype=torch.float64) * 0.9 + 0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: batch_shaping(x, (2.0, 6.0)), (values,), eps=1e-7)


def test_loss_when_values_are_float32_then_so_are_loss_and_gradient() -> None:
    values = torch.rand(30, 2, requires_grad=True)
    loss = batch_shaping(values)
    loss.backward()
    assert loss.dtype == torch.float32 and values.grad is not None and values.grad.dtype == torch.float32


def test_past_when_given_then_it_counts_without_gradient() -> None:
    past = torch.rand(20, 2, dtype=torch.float64, requires_grad=True)
    values = torch.rand(8, 2, dtype=torch.float64, requires_grad=True)
    loss = batch_shaping(values, past=past)
    whole = torch.cat([past.detach(), values.detach()]).requires_grad_()
    wanted = batch_shaping(whole)
    loss.backward()
    wanted.backward()
    assert loss.item() == wanted.item()
    assert past.grad is None and values.grad is not None and whole.grad is not None
    assert torch.equal(values.grad, whole.grad[20:])


def test_memory_when_it_is_full_then_the_oldest_rows_go() -> None:
    shaping = BatchShaping(1, capacity=5)
    for start in (0.1, 0.2, 0.3):
        shaping(torch.tensor([[start], [start + 0.05]]))
    assert shaping.past.flatten().tolist() == pytest.approx([0.15, 0.2, 0.25, 0.3, 0.35])
    assert int(shaping.held) == 5


def test_memory_when_used_then_the_loss_is_that_of_the_latest_rows() -> None:
    torch.manual_seed(0)
    shaping, batches = BatchShaping(2, capacity=10), torch.rand(4, 4, 2)
    for batch in batches[:3]:
        shaping(batch)
    wanted = batch_shaping(torch.cat([batches[0, 2:], batches[1], batches[2]])[-10:])
    latest = batch_shaping(torch.cat([batches[1, 2:], batches[2], batches[3]]))
    assert shaping.eval()(batches[3]).item() == pytest.approx(latest.item())
    assert shaping.past.shape == (10, 2) and wanted.item() != latest.item()
    before = shaping.past.clone()
    shaping(batches[0])  # evaluation remembers nothing
    assert torch.equal(shaping.past, before)


def test_memory_when_a_batch_is_larger_than_it_then_that_batch_alone_counts() -> None:
    shaping, values = BatchShaping(1, capacity=4), torch.rand(9, 1)
    shaping(torch.rand(4, 1))
    assert shaping(values).item() == pytest.approx(batch_shaping(values).item())
    assert torch.equal(shaping.past, values[-4:])


def test_loss_when_few_samples_of_the_prior_are_seen_then_memory_takes_most_of_the_noise_away() -> None:
    torch.manual_seed(0)
    prior = torch.distributions.Beta(torch.tensor(0.6), torch.tensor(0.4))
    shaping = BatchShaping(64, capacity=256)
    losses = [shaping(prior.sample((16, 64)).clamp(1e-6, 1 - 1e-6)).item() for _ in range(20)]
    assert losses[0] == pytest.approx(1 / (6 * 17), rel=0.3)
    assert losses[-1] == pytest.approx(1 / (6 * 257), rel=0.3)


def test_loss_when_a_batch_of_256_has_64_channels_then_a_few_milliseconds() -> None:
    spent = []
    for _ in range(8):
        values = torch.rand(256, 64, requires_grad=True)
        start = time.process_time()
        batch_shaping(values).backward()
        spent.append(time.process_time() - start)
    assert min(spent) < 0.06
