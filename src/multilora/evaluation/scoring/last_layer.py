"""The feed-forward part of the last layer works on each token alone, so only scored tokens need it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from multilora.loss.output_head import base_of


def last_mlp(model: Any) -> nn.Module | None:
    """Return the feed-forward module of the last decoder layer, or None if it is not where most models have it."""
    base = base_of(model)
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    layers = getattr(decoder, "layers", None)
    mlp = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) and len(layers) else None
    return mlp if isinstance(mlp, nn.Module) else None


@contextmanager
def computed_only_at(mlp: nn.Module, row: Tensor, column: Tensor | int, width: int) -> Iterator[None]:
    """Let a module compute some tokens only and return 0 for the others. Not thread-safe.

    Args:
        mlp: from `last_mlp`
        row, column: of the tokens, [tokens] each; one column may serve all rows
        width: tokens per row of the batch; states before them, which prompt learning adds, are not computed
    """
    before = vars(mlp).get("forward")
    original = mlp.forward

    def forward(hidden: Tensor) -> Tensor:
        place = column + (hidden.shape[1] - width)
        output = torch.zeros_like(hidden)
        output[row, place] = original(hidden[row, place][None])[0]
        return output

    vars(mlp)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(mlp)["forward"]
        else:
            vars(mlp)["forward"] = before
