"""Keys and values of a prefix, shared by all rows behind it, and attention masks for these rows and for trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from multilora.evaluation.scoring.prefix_tree import Row
from multilora.loss.output_head import base_of

KeysValues = list[tuple[Tensor, Tensor] | None]


class _PrefixLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a prefix, [1, heads, length, size]. Those of the rows are appended, but not kept."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = keys, values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values of prefix and rows."""
        rows = key_states.shape[0]
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


def cache_behind(prefix: KeysValues) -> Cache:
    """Return a cache for rows behind a prefix; it does not change."""
    layers = [DynamicLayer() if pair is None else _PrefixLayer(*pair) for pair in prefix]
    return Cache(layers=layers)


def growing_cache(prefix: KeysValues | None) -> DynamicCache:
    """Return a cache that keeps the keys and values of one row behind a prefix.

    Layers with a sliding window keep all of them too: the mask limits what is attended to.
    """
    cache = DynamicCache()
    for index, pair in enumerate(prefix or []):
        if pair is not None:
            cache.update(pair[0], pair[1], index)
    return cache


def keys_values(cache: DynamicCache) -> KeysValues:
    """Return the content of a cache per layer; None for layers that have none of their own."""
    return [(layer.keys, layer.values) if layer.is_initialized else None for layer in cache.layers]


def attention_kinds(model: Any) -> dict[str, int | None]:
    """Return the kinds of attention layers of a model: name -> window in tokens, None if all tokens are seen."""
    config = base_of(model).config.get_text_config()
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = set(getattr(config, "layer_types", None) or [])
    if not kinds:
        return {"sliding_attention" if window else "full_attention": window}
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}


def attention_masks(model: Any, rows: Sequence[Row], prefix_length: int, width: int) -> Tensor | dict[str, Tensor]:
    """Return the attention mask of rows behind a prefix, [rows, 1, width, prefix_length + width].

    Windows are measured in positions, not in places in the row. Nothing that is scored depends on padding.
    If no row is a tree, one mask serves all: [1, 1, width, prefix_length + width].

    Returns:
        what the model takes: one mask, or one per kind of layer, added to the attention scores
    """
    base = base_of(model)
    if all(row.is_linear for row in rows):
        rows = [max(rows, key=len)]
    allowed = np.zeros((len(rows), width, prefix_length + width), dtype=bool)
    positions = np.zeros((len(rows), prefix_length + width), dtype=np.int32)
    positions[:, :prefix_length] = np.arange(prefix_length)
    for index, row in enumerate(rows):
        size = len(row)
        allowed[index, :size, :prefix_length] = True
        allowed[index, :size, prefix_length : prefix_length + size] = row.mask()
        padding = np.arange(size, width)
        allowed[index, padding, prefix_length + padding] = True
        positions[index, prefix_length : prefix_length + size] = row.positions
    masks = {}
    for kind, window in attention_kinds(model).items():
        seen = allowed
        if window is not None:
            seen = allowed & (positions[:, prefix_length:, None] - positions[:, None] < window)
        # A mask of booleans would be converted into this one in every layer.
        mask = torch.zeros(seen.shape, dtype=base.dtype).masked_fill_(
            torch.from_numpy(~seen), torch.finfo(base.dtype).min
        )
        masks[kind] = mask[:, None].to(base.device)
    return masks if len(masks) > 1 else next(iter(masks.values()))
