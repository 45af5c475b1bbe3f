"""Cosines between the gradients of the tasks: below zero, a step for one task harms another.

The gradient of a task is that of the sum of its token losses in a batch; a cosine does not depend on its length, so the
mean has the same. Tasks can share a row, since every token has a task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import combinations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from multilora.loss.tally import sum_dtype

ALL = "all"
_ADAPTED = (BaseTunerLayer, AuxiliaryTrainingWrapper)


def trained_by_type(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Group the trained parameters by module type: the last part of the adapted module's name, such as `q_proj`.

    Without an adapter, it is the name of the module that owns the parameter.
    """
    adapted = {name for name, module in model.named_modules() if isinstance(module, _ADAPTED)}
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(_module_type(name, adapted), []).append(parameter)
    return groups


def _module_type(parameter: str, adapted: Collection[str]) -> str:
    parts = parameter.split(".")
    owners = [".".join(parts[:end]) for end in range(1, len(parts))]
    owner = next((name for name in owners if name in adapted), owners[-1] if owners else parameter)
    named = [part for part in owner.split(".") if not part.isdigit()]  # without the index of a layer or an expert
    return named[-1] if named else owner


def task_products(
    losses: Tensor,
    task_ids: Tensor,
    tasks: Sequence[int],
    groups: Mapping[str, Sequence[Tensor]],
    total: Callable[[Tensor], Tensor] = lambda gradients: gradients,
) -> dict[str, Tensor]:
    """Compute the scalar products between the tasks' gradients, with one backward pass per task.

    The `grad` of the parameters is neither read nor changed, and hooks on it do not run. The gradients of all tasks are
    in memory at the same time.

    Args:
        losses: of the trained tokens, [tokens], with their graph, which is freed
        task_ids: the task of every trained token, [tokens]
        tasks: task ids to compare
        groups: name -> parameters
        total: sums gradients, [tasks, values], over processes, each of which must call this function

    Returns:
        name of a group -> [tasks, tasks], in float64 (float32 on MPS)
    """
    parameters = [parameter for group in groups.values() for parameter in group]
    gradients = [
        torch.autograd.grad(
            losses,
            parameters,
            (task_ids == task).to(losses.dtype),
            retain_graph=task != tasks[-1],
            allow_unused=True,
            materialize_grads=True,
        )
        for task in tasks
    ]
    by_parameter = iter(zip(*gradients, strict=True))
    dtype = sum_dtype(losses.device)
    products = {}
    for name, group in groups.items():
        products[name] = torch.zeros(len(tasks), len(tasks), dtype=dtype, device=losses.device)
        for _ in group:
            rows = total(torch.stack([gradient.flatten() for gradient in next(by_parameter)]).to(dtype))
            products[name] += rows @ rows.T
    return products


def task_cosines(products: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, dict[tuple[str, str], float]]:
    """Turn scalar products into cosines.

    Args:
        products: from `task_products`
        names: of its tasks

    Returns:
        `all`, over all parameters, and every group -> pair of tasks -> cosine; without the pairs of a gradient that is
        zero or not finite
    """
    every = {ALL: torch.stack(list(products.values())).sum(dim=0), **products}
    return {group: dict(_cosines(matrix.tolist(), names)) for group, matrix in every.items()}


def _cosines(products: list[list[float]], names: Sequence[str]) -> Iterator[tuple[tuple[str, str], float]]:
    for i, j in combinations(range(len(names)), 2):
        lengths = math.sqrt(max(products[i][i], 0.0)) * math.sqrt(max(products[j][j], 0.0))
        if lengths > 0 and math.isfinite(lengths) and math.isfinite(products[i][j]):
            yield (names[i], names[j]), products[i][j] / lengths
