"""The float network trained further on labels: what the steps alone are worth."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from app.domain.methods import Training
from benchmarks.papers.subjects import wrong
from worker.data import RoleData
from worker.methods.training import shifted
from worker.search.evaluate import Evaluator


def further(owner: Evaluator, how: Training) -> dict[str, float]:
    """Return the test error in per cent of the float network trained further."""
    net = trained_on(owner.original, owner.rows.head(how.rows), how)
    with torch.no_grad():
        answers = torch.cat([net(*batch) for batch in owner.pictures("holdout").batches(500)])
    return {"trained": wrong(owner, (answers,))}


def trained_on(folded: nn.Module, rows: RoleData, how: Training) -> nn.Module:
    """Train a float network on labels with Adam, its rate falling along half a cosine, as the methods are."""
    net: nn.Module = copy.deepcopy(folded)
    for item in net.parameters():
        item.requires_grad_(True)
    steps = len(rows) // how.batch
    optimizer = torch.optim.Adam(net.parameters(), how.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.epochs * steps)
    torch.manual_seed(how.seed)
    assert rows.labels is not None
    for _ in range(how.epochs):
        for chosen in torch.randperm(len(rows))[: steps * how.batch].split(how.batch):
            pictures = shifted([item[chosen] for item in rows.inputs], how.shift, how.mirror)
            optimizer.zero_grad()
            F.cross_entropy(net(*pictures), rows.labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return net
