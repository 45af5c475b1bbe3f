"""Extend a finished or stopped run: its plan continues, and the learning rate follows the longer schedule."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler

from multilora.recipe import Recipe
from multilora.recipe.training_keys import typed
from multilora.runs.directory import FACTS_FILE, METRICS_FILE, RECIPE_FILE, weights_folder

# Keys that set the number of steps.
TRAINING_LENGTH = {"max_steps", "num_train_epochs"}
MIXTURE_LENGTH = {"total_examples", "total_tokens"}

COPIED = (RECIPE_FILE, METRICS_FILE, FACTS_FILE)
MOVED = ("eval.json", "samples", "analysis")


def length_of(recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe says about the number of steps."""
    return {
        **{name: typed(name, recipe.training[name]) for name in TRAINING_LENGTH & set(recipe.training)},
        **recipe.mixture.model_dump(include=MIXTURE_LENGTH),
    }


def set_results_aside(path: Path, method: str, step: int) -> Path:
    """Move the weights and results of a finished run to a run directory of their own, `before_extension/step-<n>`.

    The weights come last: until then the run counts as finished, and this can be repeated after an interruption.

    Args:
        path: the run directory
        method: the adapter method
        step: the last step of the run
    """
    target = path / "before_extension" / f"step-{step}"
    target.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if (path / name).is_file():
            shutil.copy2(path / name, target / name)
    weights = weights_folder(path, method)
    for source in (*(path / name for name in MOVED), weights):
        if source.exists():
            os.replace(source, target / source.name)
    return target


def describe_extension(arguments: TrainingArguments, step: int, before: int, after: int) -> str:
    """Say what an extension means for the learning rate.

    Args:
        arguments: of the extended run
        step: from which training continues
        before: planned steps so far
        after: planned steps now
    """
    start = f"the plan is extended from {before:,} to {after:,} steps, continuing at step {step:,}"
    name = getattr(arguments.lr_scheduler_type, "value", str(arguments.lr_scheduler_type))
    rates = [_learning_rate(arguments, step, steps) for steps in (before, after)]
    if None in rates:
        return f"{start}; the {name} schedule goes on"
    return (
        f"{start}. The learning rate at that step changes from {rates[0]:.3g} to {rates[1]:.3g} and follows the {name} "
        f"schedule of {after:,} steps from there, so the result differs from that of a run planned with {after:,} "
        "steps from the start"
    )


def _learning_rate(arguments: TrainingArguments, step: int, steps: int) -> float | None:
    """Return the learning rate at a step of a run of `steps` steps; None if it depends on more than the step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=arguments.learning_rate)
    schedule = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs or {}),
    )
    if not isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
        return None
    return float(arguments.learning_rate * schedule.lr_lambdas[0](step))
