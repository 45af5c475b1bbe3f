"""Parameter groups: scales and up-projections at learning rates of their own, scales without weight decay.

Under Adam a scale moves by about its learning rate per step whatever its gradient's size, so that
`MultiLoraConfig(lora_alpha=k * r)` and `scale_factor=k` train the same function (docs/maths.md): the first travels with
the adapter into any trainer, the second leaves alpha alone.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

SCALE = ".multilora_scale."
UP = (".multilora_B.", ".lora_B.", ".lora_embedding_B.")


def kind_of(name: str) -> str:
    """`scale`, `up` or `other`, for a parameter's name in the model."""
    if SCALE in name:
        return "scale"
    return "up" if any(part in name for part in UP) else "other"


def split_groups(optimizer: Optimizer, model: nn.Module, *, scale_factor: float, up_factor: float) -> None:
    """Split a new optimizer's groups by kind of parameter, in place, before any step or scheduler.

    Args:
        optimizer: any optimizer over parameters of `model`
        model: gives the parameters their names
        scale_factor: learning rate of MultiLoRA's scales over that of their group
        up_factor: learning rate of the up-projections B over that of their group (LoRA+, arXiv 2402.12354)
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    # The first group's rate is the one that transformers logs.
    factors = {"other": 1.0, "up": up_factor, "scale": scale_factor}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        for kind, factor in factors.items():
            chosen = [p for p in group["params"] if kind_of(names.get(id(p), "")) == kind]
            if not chosen:
                continue
            changes: dict[str, Any] = {"params": chosen, "lr": group["lr"] * factor, "kind": kind}
            if kind == "scale" and "weight_decay" in group:
                changes["weight_decay"] = 0.0
            groups.append({**group, **changes})
    optimizer.param_groups = groups
