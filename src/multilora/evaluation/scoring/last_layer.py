"""The last layers work on each token alone, so only the tokens whose logits are used need them."""

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


def last_position() -> Tensor:
    """Return `logits_to_keep` for the last position only, [1].

    An index copies the states. With a slice of them, which the number 1 gives, torch copies the weight of a frozen
    output layer for every row on a CPU: with 262,144 tokens that takes 20 to 100 times as long as the product.
    """
    return torch.tensor([-1])


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
