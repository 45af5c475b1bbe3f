"""A recipe's `training:` section as transformers' `TrainingArguments`, with our defaults."""

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
    """Values for keys that the recipe leaves out; the learning rate is smaller if all weights are trained."""
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
    """The `TrainingArguments` of a run. Making them chooses the device and starts the process group.

    Args:
        training: the recipe's section, with names and types already checked
        output_dir: the folder of the checkpoints
        method: the adapter method, for the default learning rate
        dtype: of the base; if all weights of a bfloat16 base are trained, they are kept in float32 and computed with
            in bfloat16

    Raises:
        RecipeError: transformers refuses a value, or this machine does not support it.
        InputError: one process would drive several GPUs.
    """
    values = {**defaults(method), **training}
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if (method == FULL or deepspeed) and dtype == "bfloat16" and not training.get("fp16"):
        # DeepSpeed also keeps float32 copies of what is trained; ZeRO-3 would otherwise load the base in float32.
        values.setdefault("bf16", True)
        if not (torch.accelerator.is_available() or deepspeed):
            values.setdefault("use_cpu", True)  # transformers refuses bf16 on a CPU that was not asked for
    values = {name: typed(name, value) for name, value in values.items()}
    try:
        arguments = TrainingArguments(output_dir=output_dir, remove_unused_columns=False, disable_tqdm=True, **values)
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError([f"training: {' '.join(str(error).split())}"]) from None
    check_one_device(arguments)
    return arguments


def check_one_device(arguments: TrainingArguments) -> None:
    """Refuse several GPUs in one process.

    Raises:
        InputError: transformers would use DataParallel.
    """
    if arguments.n_gpu > 1:
        raise InputError(
            f"one process would drive {arguments.n_gpu} GPUs (DataParallel), which the loss per task does not support; "
            "start one process per GPU with torchrun or accelerate launch, or choose one GPU with CUDA_VISIBLE_DEVICES"
        )
