"""Loss weighting: give every trained token, every example or every task the same weight.

The loss of a step is a weighted mean over all accumulated batches of all processes. Its normaliser (`totals`) is a sum
over these batches, computed before the first of them is run.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from multilora.errors import InputError

Weighting = Literal["token", "example", "task"]
Batch = dict[str, Tensor]


def check(weighting: str) -> None:
    """Check the name of a weighting.

    Raises:
        InputError: it is not one of token, example, task.
    """
    if weighting not in get_args(Weighting):
        raise InputError(f"loss weighting {weighting!r}; expected one of {', '.join(get_args(Weighting))}")


def examples_of(batch: Batch) -> Tensor:
    """Return the example index of every token, [batch, length]: per row, or per segment (position 0 starts one)."""
    if "position_ids" not in batch:
        rows = torch.arange(len(batch["labels"]), device=batch["labels"].device)
        return rows[:, None].expand_as(batch["labels"])
    starts = batch["position_ids"] == 0
    return starts.flatten().cumsum(0).view_as(starts) - 1


def totals(weighting: Weighting, batch: Batch, num_tasks: int) -> Tensor:
    """Count a batch for the normaliser: its trained tokens, its examples, or the trained tokens of every task.

    Args:
        weighting: token, example or task
        batch: from `multilora.data.collate.Collator`
        num_tasks: number of tasks in the plan

    Returns:
        int64, [] or, for `task`, [num_tasks]; examples without trained tokens are not counted
    """
    trained = batch["labels"][:, 1:] != -100
    if weighting == "task":
        return torch.bincount(batch["task_ids"][:, 1:][trained], minlength=num_tasks)
    if weighting == "example":
        return (torch.bincount(examples_of(batch)[:, 1:][trained]) > 0).sum()
    return trained.sum()


def weighted_loss(weighting: Weighting, losses: Tensor, batch: Batch, total: Tensor) -> Tensor:
    """Compute a batch's share of the step's loss; the shares of all batches add up to the weighted mean.

    Args:
        weighting: token, example or task
        losses: [trained tokens], from `token_losses`
        batch: the batch of these losses
        total: sum of `totals` over all batches of the step

    Returns:
        [], float32
    """
    if weighting == "token":
        return losses.sum() / total
    trained = batch["labels"][:, 1:] != -100
    if weighting == "task":
        tasks = batch["task_ids"][:, 1:][trained]
        return (losses / total[tasks]).sum() / (total > 0).sum()
    examples = examples_of(batch)[:, 1:][trained]
    lengths = torch.bincount(examples, minlength=1)
    return (losses / lengths[examples]).sum() / total
