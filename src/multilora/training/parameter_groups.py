"""Parameter groups: separate learning rates for scales, up- and down-projections, no weight decay for scales.

Under Adam, a scale moves by about its learning rate per step, whatever the size of its gradient. Therefore
`MultiLoraConfig(lora_alpha=k * r)` and a factor of k for the scales train the same function (docs/maths.md): the first
is part of the adapter and works in any trainer, the second leaves alpha unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

SCALE = ".multilora_scale."
UP = (".multilora_B.", ".lora_B.", ".lora_embedding_B.")
DOWN = (".multilora_A.", ".lora_A.", ".lora_embedding_A.")


def kind_of(name: str) -> str:
    """Classify a parameter by its name: `scale`, `up`, `down` or `other`."""
    for kind, parts in (("scale", (SCALE,)), ("up", UP), ("down", DOWN)):
        if any(part in name for part in parts):
            return kind
    return "other"


def split_groups(optimizer: Optimizer, model: nn.Module, lr_factors: Mapping[str, float]) -> None:
    """Split the groups of a new optimizer by kind of parameter, in place, before its first step and before a scheduler.

    Args:
        optimizer: any optimizer over parameters of `model`
        model: provides the parameter names
        lr_factors: kind of parameter -> what multiplies its learning rate: `scale` for MultiLoRA's scales, `up` for the
            up-projections B (LoRA+, arXiv 2402.12354), `down` for the down-projections A (0: LoRA-FA, arXiv
            2308.03303)
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    # transformers logs the learning rate of the first group, so a factor of 1 comes first.
    factors = {"other": 1.0, **lr_factors}
    if factors.get("down") == 1:
        del factors["down"]  # one group with the others: fewer, larger steps of the optimizer
    factors = dict(sorted(factors.items(), key=lambda item: item[1] != 1))

    def group_of(parameter: nn.Parameter) -> str:
        kind = kind_of(names.get(id(parameter), ""))
        return kind if kind in factors else "other"

    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        for kind, factor in factors.items():
            parameters = [p for p in group["params"] if group_of(p) == kind]
            if not parameters:
                continue
            changes: dict[str, Any] = {"params": parameters, "lr": group["lr"] * factor, "kind": kind}
            if kind == "scale" and "weight_decay" in group:
                changes["weight_decay"] = 0.0
            groups.append({**group, **changes})
    optimizer.param_groups = groups
