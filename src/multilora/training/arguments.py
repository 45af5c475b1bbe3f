"""A recipe's `training:` section as transformers' `TrainingArguments`, with our defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

# What the run itself decides, and why.
FIXED = {
    "output_dir": "the recipe's own output_dir",
    "remove_unused_columns": "task ids must reach the loss",
    "disable_tqdm": "multilora shows its own progress on stderr",
}


def defaults(method: str) -> dict[str, Any]:
    """Values used where the recipe is silent; the learning rate is smaller where all weights are trained."""
    return {
        "learning_rate": 1e-4 if method == "full" else 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,  # below 1: a fraction of all steps
        "per_device_train_batch_size": 8,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def argument_names() -> list[str]:
    """The names `TrainingArguments` takes."""
    from transformers import TrainingArguments

    return [item.name for item in dataclasses.fields(TrainingArguments) if item.init]


def training_arguments(training: Mapping[str, Any], *, output_dir: str, method: str, steps: int = -1) -> Any:
    """The `TrainingArguments` of a run.

    Args:
        training: the recipe's section
        output_dir: where checkpoints go
        method: the adapter method, for the default learning rate
        steps: optimizer steps that the plan holds; -1 leaves the recipe's

    Raises:
        ValueError, TypeError, ImportError: from transformers, for values it refuses.
    """
    from transformers import TrainingArguments

    values = {**defaults(method), **training}
    for name, value in values.items():
        # YAML reads `1e-3` as text; only a number can be meant where the default is one.
        if isinstance(value, str) and isinstance(_default(TrainingArguments, name), int | float):
            values[name] = float(value)
    if steps > 0:
        values["max_steps"] = steps
    return TrainingArguments(output_dir=output_dir, remove_unused_columns=False, disable_tqdm=True, **values)


def _default(cls: Any, name: str) -> Any:
    for item in dataclasses.fields(cls):
        if item.name == name:
            return None if isinstance(item.default, bool) else item.default
    return None
