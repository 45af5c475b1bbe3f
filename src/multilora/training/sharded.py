"""What FSDP2 or DeepSpeed has spread over processes, whole again; and whether that can be had."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from multilora.errors import InputError
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


def loaded_in_parts(model: nn.Module) -> bool:
    """Whether DeepSpeed's ZeRO-3 has spread the model over processes, as it does while loading."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


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


def check_sharding(trainer: Any) -> None:
    """Whether what was asked of accelerate is what runs, and can be watched and saved.

    Args:
        trainer: a MultiTaskTrainer

    Raises:
        InputError: FSDP was asked for and the trainer does not use it; FSDP1; an adapter that PEFT saves frozen weights
            of; with DeepSpeed, steps to be skipped or weights already spread while loading.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise InputError(
            f"FSDP was asked for, but accelerate does not use it here (device {trainer.args.device.type}, "
            f"{trainer.args.world_size} processes); it wants one process per accelerator"
        )
    if trainer.is_fsdp_enabled:
        version = trainer.accelerator.state.fsdp_plugin.fsdp_version
        if version != 2:
            raise InputError(
                f"FSDP version {version} was asked for, expected 2; set fsdp_version: 2 (fsdp_config.version: 2)"
            )
    elif trainer.is_deepspeed_enabled:
        if trainer.health.on_nonfinite == "skip":
            raise InputError(
                "loss.on_nonfinite: skip cannot be had with DeepSpeed, which takes a step before its gradients can be "
                "looked at; set it to stop, or shard with FSDP2"
            )
    else:
        return
    frozen = _left_out(trainer.model)
    if frozen:
        raise InputError(
            f"PEFT saves {len(frozen)} frozen weights of this adapter ({frozen[0]}, ...), which are not gathered from "
            "several processes; train it with DDP, or with another adapter.method"
        )


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
