"""Turn a recipe's `training:` section into transformers' `TrainingArguments`, with defaults for multi-task training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainingArguments

from multilora.errors import InputError, RecipeError
from multilora.methods import FULL
from multilora.recipe.training_keys import typed


def defaults(method: str) -> dict[str, Any]:
    """Return the values of keys that the recipe does not set; the learning rate is lower if all weights are trained."""
    return {
        "learning_rate": 1e-4 if method == FULL else 1e-3,
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


def training_arguments(
    training: Mapping[str, Any], *, output_dir: str, method: str, dtype: str = "float32"
) -> TrainingArguments:
    """Create the `TrainingArguments` of a run. This selects the device and starts the process group.

    Args:
        training: the recipe's section, with names and types already checked
        output_dir: the folder of the checkpoints
        method: the adapter method, for the default learning rate
        dtype: of the base; if all weights of a bfloat16 base are trained, training uses bfloat16 mixed precision with
            float32 weights

    Raises:
        RecipeError: transformers rejects a value, or this machine does not support it.
        InputError: one process would drive several GPUs.
    """
    values = {**defaults(method), **training}
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if (method == FULL or deepspeed) and dtype == "bfloat16" and not training.get("fp16"):
        # DeepSpeed keeps float32 copies of the trained weights. Without bf16, ZeRO-3 would load the base in float32.
        values.setdefault("bf16", True)
        if not (torch.accelerator.is_available() or deepspeed):
            values.setdefault("use_cpu", True)  # without it, transformers rejects bf16 on a CPU
    values = {name: typed(name, value) for name, value in values.items()}
    try:
        arguments = TrainingArguments(output_dir=output_dir, remove_unused_columns=False, disable_tqdm=True, **values)
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError([f"training: {' '.join(str(error).split())}"]) from None
    check_one_device(arguments)
    return arguments


def check_one_device(arguments: TrainingArguments) -> None:
    """Check that this process uses at most one GPU.

    Raises:
        InputError: transformers would use DataParallel.
    """
    if arguments.n_gpu > 1:
        raise InputError(
            f"one process would drive {arguments.n_gpu} GPUs (DataParallel), which the per-task loss does not support; "
            "start one process per GPU with torchrun or accelerate launch, or select one GPU with CUDA_VISIBLE_DEVICES"
        )
