"""Muon for low-rank adapters: a step moves every factor of every branch by a matrix with equal singular values.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by the nearest
matrix whose singular values are all 1. `torch.optim.Muon` treats a parameter as one matrix. MultiLoRA stores the
factors of all branches in one parameter, and here each of them is a matrix of its own. Everything else (scales, biases,
norms, embeddings) gets AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from multilora.peft_method import MultiLoraLayer

# Of the reference: after five iterations, singular values are between about 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
# The root mean square of an element of AdamW's steps, which Muon's steps are scaled to, so that learning rates of AdamW
# can be used (Liu et al. 2025, arXiv 2502.16982, section 2.2).
ADAMW_RMS = 0.2


def orthogonalized(matrices: Tensor) -> Tensor:
    """The nearest matrices whose singular values are all 1, approximately; [..., m, k] -> [..., m, k] in float32."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x: Tensor = (matrices if wide else matrices.mT).float()
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-12)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


def branch_step(update: Tensor, axis: int, branches: int) -> Tensor:
    """Muon's step for the stacked factors of all branches, for a learning rate of 1.

    Args:
        update: momentum, [..., n*r, d_in] for A or [..., d_out, n*r] for B
        axis: the axis of the branches: -2 for A, -1 for B
        branches: n
    """
    # A: [..., n, r, d_in]; B: [..., d_out, n, r]
    blocks: Tensor = update.unflatten(axis, (branches, -1))  # type: ignore[no-untyped-call]
    if axis == -1:
        blocks = blocks.transpose(-3, -2)
    step: Tensor = orthogonalized(blocks) * (ADAMW_RMS * max(blocks.shape[-2:]) ** 0.5)
    if axis == -1:
        step = step.transpose(-3, -2)
    return step.reshape(update.shape).to(update.dtype)


def factor_layouts(model: nn.Module) -> dict[int, tuple[int, int]]:
    """Id of every factor A or B of MultiLoRA and LoRA on linear layers -> (axis of its branches, their number)."""
    layouts: dict[int, tuple[int, int]] = {}
    for module in model.modules():
        if isinstance(module, MultiLoraLayer):
            for name, branches in module.num_branches.items():
                layouts[id(module.multilora_A[name])] = (-2, branches)
                layouts[id(module.multilora_B[name])] = (-1, branches)
        elif isinstance(module, LoraLayer):
            for axis, factors in ((-2, module.lora_A), (-1, module.lora_B)):
                layouts |= {id(item.weight): (axis, 1) for item in factors.values() if isinstance(item, nn.Linear)}
    return layouts


class Muon(AdamW):
    """Muon for the factors A and B of adapters; torch's AdamW, which this class extends, for all other parameters.

    Args:
        adamw: an AdamW over parameters of `model`, before its first step; its groups keep their learning rates, weight
            decay, betas and epsilon
        model: provides the number of branches of every factor
    """

    def __init__(self, adamw: Optimizer, model: nn.Module) -> None:
        layouts = factor_layouts(model)
        groups: list[dict[str, Any]] = []
        for group in adamw.param_groups:
            parts: dict[tuple[int, int] | None, list[Tensor]] = {}
            for parameter in group["params"]:
                parts.setdefault(layouts.get(id(parameter)), []).append(parameter)
            groups += [{**group, "params": parameters, "layout": layout} for layout, parameters in parts.items()]
        super().__init__(groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; see `torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for group in groups:
            if group["layout"] is not None:
                self._muon_step(group)
        self.param_groups = [group for group in groups if group["layout"] is None]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _muon_step(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                # AdamW, which loads the states, expects the number of steps in each.
                state.update(step=torch.zeros(()), momentum=torch.zeros_like(parameter))
            state["step"] += 1
            momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
            step = branch_step(parameter.grad.lerp(momentum, MOMENTUM), *group["layout"])  # Nesterov's
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=group["lr"])
