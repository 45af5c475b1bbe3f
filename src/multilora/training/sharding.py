"""What FSDP2 or DeepSpeed has spread over processes, whole again; and whether that can be had."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from multilora.errors import InputError, RunError
from multilora.loss.output_head import base_of
from multilora.processes import is_main_process


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of one that is spread over processes; these must all call it."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if hasattr(tensor, "ds_id"):  # a parameter of ZeRO-3, of which this process has a part
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def trained_weights(model: Any) -> dict[str, Tensor]:
    """Every weight of a model spread by FSDP2 or DeepSpeed that training changes, and its buffers, on the CPU.

    All processes must call it; the first one gets the weights, the others an empty dictionary. A frozen base stays
    where it is. DeepSpeed's weights are its float32 masters.

    Args:
        model: a `PeftModel` or, with every weight trained, a transformers model
    """
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=_adapted(model))
        weights: dict[str, Any] = get_model_state_dict(model, options=options)
        return weights
    return _deepspeed_weights(model)


def _deepspeed_weights(model: nn.Module) -> dict[str, Tensor]:
    from deepspeed.utils import safe_get_full_fp32_param

    main_process = is_main_process()
    weights = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            master = safe_get_full_fp32_param(parameter)
            value = whole(parameter) if master is None else master
            if main_process:
                weights[name] = value.detach().to("cpu", copy=True)
    if main_process:
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        weights |= {name: value.cpu() for name, value in model.state_dict().items() if name not in parameters}
    return weights


def check_written(model: nn.Module, folder: Path) -> None:
    """Whether `save_pretrained` has written every gathered weight; it drops those whose names it does not know.

    Raises:
        RunError: fewer than were trained.
    """
    written = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            written += len(file.keys())
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    if written < trained:
        raise RunError(
            f"{folder}: only {written} of the {trained} trained weights would be written, as some wrapper has renamed "
            "them; train with DDP, or without what wraps the model's modules"
        )


def check_sharding(trainer: Any) -> None:
    """Whether what was asked of accelerate is what runs, and can be watched and saved; before anything is spread.

    Args:
        trainer: a MultiTaskTrainer

    Raises:
        InputError: FSDP was asked for and the trainer does not use it; what FSDP2 or DeepSpeed cannot do, all of it.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and not trainer.is_spread:
        raise InputError(
            f"FSDP was asked for, but accelerate does not use it here (device {trainer.args.device.type}, "
            f"{trainer.args.world_size} processes); it wants one process per accelerator"
        )
    problems: list[str] = []
    if trainer.is_fsdp_enabled:
        problems += _fsdp_problems(trainer)
    if trainer.is_deepspeed_enabled:
        problems += _deepspeed_problems(trainer)
    frozen = _left_out(trainer.model) if trainer.is_spread else []
    if frozen:
        problems.append(
            f"PEFT saves {len(frozen)} frozen weights of this adapter ({frozen[0]}, ...), which are not gathered from "
            "several processes; train it with DDP, or with another adapter.method"
        )
    if problems:
        raise InputError("\n".join(problems))


def _fsdp_problems(trainer: Any) -> Iterator[str]:
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        yield f"FSDP version {plugin.fsdp_version} was asked for, expected 2; set fsdp_version to 2"
    if plugin.activation_checkpointing:
        # It renames the modules that it wraps, and PEFT then finds no weight of the adapter to save.
        yield (
            "fsdp_activation_checkpointing hides an adapter's weights from saving; set it to false and "
            "training.gradient_checkpointing to true"
        )
    if getattr(base_of(trainer.model), "is_loaded_in_8bit", False):
        yield "model.quantization: 8bit weights cannot be split by FSDP2; use 4bit, or DDP"


def _deepspeed_problems(trainer: Any) -> Iterator[str]:
    if trainer.health.on_nonfinite == "skip":
        yield (
            "loss.on_nonfinite: skip cannot be had with DeepSpeed, which takes a step before its gradients can be "
            "looked at; set it to stop, or shard with FSDP2"
        )
    if trainer.compiled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3:
        yield "training.torch_compile finds no fixed shapes under ZeRO-3; leave it out, or shard with FSDP2"


def reduce_in_float32(accelerator: Any) -> None:
    """Let FSDP2's mixed precision sum gradients in float32 and leave the losses so, unlike accelerate's."""
    plugin = accelerator.state.fsdp_plugin
    policy = plugin.mixed_precision_policy
    if plugin.fsdp_version == 2 and policy is not None:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=policy.param_dtype, reduce_dtype=torch.float32)


def _left_out(model: Any) -> list[str]:
    """Names of what PEFT would save of an adapter but `trained_weights` leaves out; empty for nearly all methods."""
    if not _adapted(model):
        return []
    from peft import get_peft_model_state_dict

    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    gathered = {name: value for name, value in model.state_dict().items() if name not in frozen}
    wanted = get_peft_model_state_dict(model)
    return sorted(wanted.keys() - get_peft_model_state_dict(model, state_dict=gathered).keys())


def _adapted(model: Any) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)
