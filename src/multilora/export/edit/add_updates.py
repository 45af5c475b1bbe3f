"""Add updates to a model in memory without changing its parameters, to see what they do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multilora.export.factors import AdapterFactors, ExpertFactors, Factors, base_key

AnyFactors = TypeVar("AnyFactors", bound=Factors)


def difference(new: AdapterFactors, old: AdapterFactors) -> dict[str, Factors]:
    """Return Delta W_new - Delta W_old of every matrix, as factors whose rank is the sum of the ranks."""
    weighted = ((1.0, dict(new.matrices())), (-1.0, dict(old.matrices())))
    names = dict.fromkeys(name for _, items in weighted for name in items)
    return {
        name: weighted_sum([(weight, items[name]) for weight, items in weighted if name in items]) for name in names
    }


def weighted_sum(parts: Sequence[tuple[float, AnyFactors]]) -> AnyFactors:
    """Return sum_j w_j Delta W_j as factors, exactly: the factors side by side.

    Args:
        parts: (w_j, factors of Delta W_j), all of the same matrix
    """
    down = torch.cat([item.down for _, item in parts], dim=-2)
    up = torch.cat([weight * item.up for weight, item in parts], dim=-1)
    return replace(parts[0][1], down=down, up=up)


def add_updates(model: Any, updates: Mapping[str, Factors], embeddings: set[str]) -> None:
    """Add updates to what the modules of a model compute.

    Args:
        model: with or without adapters. Its modules get hooks and, for updates of parameters, new parameters; the
            tensors that it had are not changed, so that a copy that shares them is not either.
        updates: name of a module or parameter in the base -> its update, see `AdapterFactors`
        embeddings: the modules that are nn.Embedding
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    modules = dict(base.named_modules())
    owners = {base_key(name): (owner, key) for owner, key, name in _parameters(base)}
    for name, item in updates.items():
        module = modules.get(name)
        if module is None or isinstance(item, ExpertFactors):
            owner, key = owners[name]
            weight = getattr(owner, key)
            delta = item.delta().to(weight.device)
            turned = delta.mT if isinstance(item, ExpertFactors) and item.transposed else delta
            setattr(owner, key, nn.Parameter((weight.detach().float() + turned).to(weight.dtype), requires_grad=False))
        else:
            module.register_forward_hook(partial(_embed if name in embeddings else _multiply, item))


def _multiply(item: Factors, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    x = inputs[0]
    down, up = (part.to(x.device, x.dtype) for part in (item.down, item.up))
    return output + F.linear(F.linear(x, down), up).to(output.dtype)


def _embed(item: Factors, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    ids = inputs[0]
    down, up = (part.to(output.device, output.dtype) for part in (item.down, item.up))
    return output + F.linear(F.embedding(ids, down.mT), up)


def _parameters(base: nn.Module) -> Iterable[tuple[nn.Module, str, str]]:
    for prefix, module in base.named_modules():
        for key in module._parameters:
            yield module, key, f"{prefix}.{key}"
