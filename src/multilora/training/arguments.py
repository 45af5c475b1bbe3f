"""A recipe's `training:` section as transformers' `TrainingArguments`, with our defaults."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch

# What the run itself decides, and why.
FIXED = {
    "output_dir": "the recipe's own output_dir",
    "remove_unused_columns": "task ids must reach the loss",
    "disable_tqdm": "multilora shows its own progress on stderr",
    "auto_find_batch_size": "the plan is made for one batch size",
    "train_sampling_strategy": "the plan is the order",
    "data_seed": "mixture.seed is the seed of the order",
    "label_smoothing_factor": "the loss is the plain cross-entropy per task",
    "resume_from_checkpoint": "say `--resume`, or train(..., resume=True)",
    "eval_strategy": "evaluation while training is evaluation.every",
    "load_best_model_at_end": "evaluation.keep says which weights a run ends with",
}


def defaults(method: str) -> dict[str, Any]:
    """Values used where the recipe is silent; the learning rate is smaller where all weights are trained."""
    return {
        "learning_rate": 1e-4 if method == "full" else 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,  # below 1: a fraction of all steps
        "per_device_train_batch_size": 8,
        "logging_steps": 10,
        "save_strategy": "steps",
        "save_steps": 0.1,  # below 1: a fraction of all steps
        "save_total_limit": 2,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def argument_names() -> list[str]:
    """The names `TrainingArguments` takes."""
    from transformers import TrainingArguments

    return [item.name for item in dataclasses.fields(TrainingArguments) if item.init]


def training_arguments(training: Mapping[str, Any], *, output_dir: str, method: str, dtype: str = "float32") -> Any:
    """The `TrainingArguments` of a run.

    Args:
        training: the recipe's section
        output_dir: where checkpoints go
        method: the adapter method, for the default learning rate
        dtype: of the base; where all of a bfloat16 base is trained, its masters are float32 and its products bfloat16

    Raises:
        ValueError, TypeError, ImportError: from transformers, for values it refuses.
    """
    from transformers import TrainingArguments

    values = {**defaults(method), **training}
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if (method == "full" or deepspeed) and dtype == "bfloat16" and not training.get("fp16"):
        # DeepSpeed too keeps float32 masters of what is trained; ZeRO-3 would else load the base in float32.
        values.setdefault("bf16", True)
        if not (torch.accelerator.is_available() or deepspeed):
            values.setdefault("use_cpu", True)  # transformers refuses bf16 on a CPU that it was not told of
    values = {name: _number(name, value, _default(TrainingArguments, name)) for name, value in values.items()}
    return TrainingArguments(output_dir=output_dir, remove_unused_columns=False, disable_tqdm=True, **values)


def _number(name: str, value: Any, default: Any) -> Any:
    """A number where the default is one (YAML reads `1e-3` as text); other values as they are."""
    if isinstance(default, bool) or not isinstance(default, int | float):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}, expected a number") from None
    if isinstance(default, int) and name in _WHOLE:
        if not number.is_integer() or isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}, expected a whole number")
        return int(number)
    return number


# Annotated as int; others with a whole default (warmup_steps, logging_steps) may be fractions.
_WHOLE = {
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "seed",
    "dataloader_num_workers",
}


def _default(cls: Any, name: str) -> Any:
    for item in dataclasses.fields(cls):
        if item.name == name:
            return item.default
    return None
