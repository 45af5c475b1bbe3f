"""Parameter groups: separate learning rates for scales and up-projections, no weight decay for scales.

Under Adam, a scale moves by about its learning rate per step, whatever the size of its gradient. Therefore
`MultiLoraConfig(lora_alpha=k * r)` and `scale_factor=k` train the same function (docs/maths.md): the first is part of
the adapter and works in any trainer, the second leaves alpha unchanged.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

SCALE = ".multilora_scale."
UP = (".multilora_B.", ".lora_B.", ".lora_embedding_B.")


def kind_of(name: str) -> str:
    """Classify a parameter by its name: `scale`, `up` or `other`."""
    if SCALE in name:
        return "scale"
    return "up" if any(part in name for part in UP) else "other"


def split_groups(optimizer: Optimizer, model: nn.Module, *, scale_factor: float, up_factor: float) -> None:
    """Split the groups of a new optimizer by kind of parameter, in place, before its first step and before a scheduler.

    Args:
        optimizer: any optimizer over parameters of `model`
        model: provides the parameter names
        scale_factor: multiplies the learning rate of MultiLoRA's scales
        up_factor: multiplies the learning rate of the up-projections B (LoRA+, arXiv 2402.12354)
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    # transformers logs the learning rate of the first group.
    factors = {"other": 1.0, "up": up_factor, "scale": scale_factor}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        for kind, factor in factors.items():
            parameters = [p for p in group["params"] if kind_of(names.get(id(p), "")) == kind]
            if not parameters:
                continue
            changes: dict[str, Any] = {"params": parameters, "lr": group["lr"] * factor, "kind": kind}
            if kind == "scale" and "weight_decay" in group:
                changes["weight_decay"] = 0.0
            groups.append({**group, **changes})
    optimizer.param_groups = groups
