"""Learning rates over the steps: what transformers' schedules lack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from multilora.errors import InputError


def train_scales_until(scheduler: Any, steps: int | None) -> Any:
    """Give the scales of MultiLoRA a learning rate of 0 from step `steps` on, in place; return the scheduler.

    Args:
        scheduler: of an optimizer with the groups of `multilora.training.parameter_groups`, before its first step

    Raises:
        InputError: the scheduler is not a function of the step alone, such as `reduce_lr_on_plateau`.
    """
    if steps is None:
        return scheduler
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise InputError(
            f"scale_steps is {steps}, which does not work with the scheduler {type(scheduler).__name__}; use a "
            "training.lr_scheduler_type that is a function of the step, such as linear or cosine"
        )

    def until(factor: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: factor(step) if step < steps else 0.0

    for index, group in enumerate(scheduler.optimizer.param_groups):
        if group.get("kind") == "scale":
            scheduler.lr_lambdas[index] = until(scheduler.lr_lambdas[index])
    return scheduler


def follow_schedule(scheduler: Any) -> None:
    """Set the learning rates of the scheduler's step; a checkpoint of a shorter plan contains those of its schedule."""
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        step = scheduler.last_epoch
        for group, base, factor in zip(
            scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(step)
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]  # which transformers logs
