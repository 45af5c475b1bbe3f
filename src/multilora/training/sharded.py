"""What FSDP2 has spread over processes, whole again."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from multilora.errors import InputError


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of one that is spread over processes; these must all call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(model: Any) -> bool:
    """Whether any parameter is spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def trained_weights(model: Any) -> dict[str, Tensor]:
    """Every weight of a sharded model that training changes, and its buffers, whole and on the CPU.

    All processes must call it; the first one gets the weights, the others an empty dictionary. A frozen base stays
    where it is.

    Args:
        model: a `PeftModel` or, with every weight trained, a transformers model; sharded by FSDP2
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=_adapted(model))
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    return weights


def check_sharding(trainer: Any) -> None:
    """Whether what was asked of accelerate is what runs, and can be saved.

    Args:
        trainer: a transformers Trainer

    Raises:
        InputError: FSDP was asked for and the trainer does not use it, FSDP1, or an adapter that PEFT saves frozen
            weights of.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and not trainer.is_fsdp_enabled:
        raise InputError(
            f"FSDP was asked for, but accelerate does not use it here (device {trainer.args.device.type}, "
            f"{trainer.args.world_size} processes); it wants one process per accelerator"
        )
    if not trainer.is_fsdp_enabled:
        return
    version = trainer.accelerator.state.fsdp_plugin.fsdp_version
    if version != 2:
        raise InputError(
            f"FSDP version {version} was asked for, expected 2; set fsdp_version: 2 (fsdp_config.version: 2)"
        )
    frozen = _left_out(trainer.model)
    if frozen:
        raise InputError(
            f"PEFT saves {len(frozen)} frozen weights of this adapter ({frozen[0]}, ...), which are not gathered under "
            "FSDP; train it with DDP, or with another adapter.method"
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
