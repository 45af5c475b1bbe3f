"""Gather what FSDP2 or DeepSpeed has sharded, and check beforehand that this is possible."""

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


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor, gathered if it is sharded; then all processes must call it."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if hasattr(tensor, "ds_id"):  # a parameter under ZeRO-3, of which this process has one shard
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def trained_weights(model: Any) -> dict[str, Tensor]:
    """Gather the trained weights and the buffers of a model sharded by FSDP2 or DeepSpeed, on the CPU.

    All processes must call it; the main process gets the weights, the others an empty dictionary. A frozen base is not
    gathered. With DeepSpeed, these are the float32 master weights.

    Args:
        model: a `PeftModel` or, if every weight is trained, a transformers model
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
            value = full_tensor(parameter) if master is None else master
            if main_process:
                weights[name] = value.detach().to("cpu", copy=True)
    if main_process:
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        weights |= {name: value.cpu() for name, value in model.state_dict().items() if name not in parameters}
    return weights


def check_written(model: nn.Module, folder: Path) -> None:
    """Check that `save_pretrained` has written every gathered weight; it drops those whose names it does not know.

    Raises:
        RunError: fewer weights were written than trained.
    """
    written = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            written += len(file.keys())
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    if written < trained:
        raise RunError(
            f"{folder}: only {written} of the {trained} trained weights would be saved, because a wrapper has renamed "
            "them; train with DDP, or remove what wraps the model's modules"
        )


def check_sharding(trainer: Any) -> None:
    """Check, before the model is sharded, that accelerate shards as requested and that all settings support it.

    Args:
        trainer: a MultiTaskTrainer

    Raises:
        InputError: FSDP was requested but is not used, or settings that FSDP2 or DeepSpeed does not support; lists all.
    """
    fsdp_requested = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if fsdp_requested and not trainer.is_sharded:
        raise InputError(
            f"FSDP was requested, but accelerate does not use it here (device {trainer.args.device.type}, "
            f"{trainer.args.world_size} processes); start one process per accelerator"
        )
    problems: list[str] = []
    if trainer.is_fsdp_enabled:
        problems += _fsdp_problems(trainer)
    if trainer.is_deepspeed_enabled:
        problems += _deepspeed_problems(trainer)
    if trainer.is_sharded and trainer.muon:
        problems.append("optimizer.muon needs whole matrices, which FSDP and DeepSpeed shard; use DDP, or leave it out")
    frozen = _frozen_adapter_weights(trainer.model) if trainer.is_sharded else []
    if frozen:
        problems.append(
            f"PEFT saves {len(frozen)} frozen weights of this adapter ({frozen[0]}, ...), and frozen weights are not "
            "gathered; train it with DDP, or use another adapter.method"
        )
    if problems:
        raise InputError("\n".join(problems))


def _fsdp_problems(trainer: Any) -> Iterator[str]:
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        yield f"fsdp_version is {plugin.fsdp_version}, expected 2; set it to 2"
    if plugin.activation_checkpointing:
        # It renames the wrapped modules, so that PEFT finds no adapter weights to save.
        yield (
            "fsdp_activation_checkpointing hides the adapter's weights from PEFT's saving; set it to false and "
            "training.gradient_checkpointing to true"
        )
    if getattr(base_of(trainer.model), "is_loaded_in_8bit", False):
        yield "model.quantization: FSDP2 cannot shard 8bit weights; use 4bit, or DDP"


def _deepspeed_problems(trainer: Any) -> Iterator[str]:
    if trainer.health.on_nonfinite == "skip":
        yield (
            "loss.on_nonfinite: skip is not supported with DeepSpeed, which takes a step before the gradients can be "
            "inspected; set it to stop, or shard with FSDP2"
        )
    if trainer.compiled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3:
        yield "training.torch_compile is not supported with ZeRO-3, where shapes are not fixed; remove it, or use FSDP2"


def reduce_in_float32(accelerator: Any) -> None:
    """Make FSDP2's mixed precision reduce gradients in float32 and keep the losses in float32, unlike accelerate."""
    plugin = accelerator.state.fsdp_plugin
    policy = plugin.mixed_precision_policy
    if plugin.fsdp_version == 2 and policy is not None:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=policy.param_dtype, reduce_dtype=torch.float32)


def _frozen_adapter_weights(model: Any) -> list[str]:
    """Return names of weights that PEFT saves but `trained_weights` does not gather; empty for nearly all methods."""
    if not _adapted(model):
        return []
    from peft import get_peft_model_state_dict

    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    gathered = {name: value for name, value in model.state_dict().items() if name not in frozen}
    saved = get_peft_model_state_dict(model)
    return sorted(saved.keys() - get_peft_model_state_dict(model, state_dict=gathered).keys())


def _adapted(model: Any) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)
