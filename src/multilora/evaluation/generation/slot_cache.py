"""A key/value cache of rows that come and go.

All rows end at the same slot: shorter ones have padding on the left. So the distance between two slots is the distance
between their tokens, and the masks of sliding windows, which transformers builds by slot, are correct.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

# Free slots of a new buffer. A buffer that is full is copied into a longer one.
ROOM = 64


class SlotLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, in buffers with free slots at their end, so that most steps copy nothing.

    `keys` and `values` are views [rows, heads, slots, dimension] of the used part of the buffers.
    """

    is_initialized: bool

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._start = 0  # first used slot of the buffers

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values; return all of them."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values, self.is_initialized = key_states, value_states, True
            return key_states, value_states
        rows, slots = self.keys.shape[0], self.keys.shape[-2]
        new = key_states.shape[-2]
        if self._buffers is None or self._start + slots + new > self._buffers[0].shape[-2]:
            self.fill([self], [torch.arange(rows)], slots, new + ROOM)
        assert self._buffers is not None
        old_end = self._start + slots
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, old_end : old_end + new] = states
        self._view(rows, self._start, old_end + new)
        return self.keys, self.values

    def fill(self, sources: Sequence[SlotLayer], rows: Sequence[Tensor], width: int, room: int) -> None:
        """Take rows from other layers, `width` slots of each, with `room` free slots after them."""
        keys = _stacked([source.keys for source in sources], rows, width, room)
        values = _stacked([source.values for source in sources], rows, width, room)
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._buffers = (keys, values)
        self._view(len(keys), 0, width)

    def keep(self, order: Sequence[int], width: int) -> None:
        """Keep the rows in `order`, from `SlotCache.keep`, and their last `width` slots."""
        moves = [(new, old) for new, old in enumerate(order) if new != old]
        end = self._start + self.keys.shape[-2]
        if self._buffers is None or 2 * len(order) < len(self._buffers[0]):  # free memory
            self.fill([self], [torch.tensor(order)], width, ROOM)
            return
        if moves:
            targets, sources = torch.tensor(moves, device=self.keys.device).T
            for buffer in self._buffers:
                used = buffer[:, :, end - width : end]
                used[targets] = used[sources]
        self._view(len(order), end - width, end)

    def _view(self, rows: int, start: int, end: int) -> None:
        assert self._buffers is not None
        self._start = start
        self.keys, self.values = (buffer[:rows, :, start:end] for buffer in self._buffers)


def _stacked(tensors: Sequence[Tensor], rows: Sequence[Tensor], width: int, room: int) -> Tensor:
    """Stack rows of tensors [rows, heads, slots, dimension], aligned at their last slot.

    Returns:
        [all rows, heads, width + room, dimension]; what comes after `width` is not set
    """
    first = tensors[0]
    buffer = first.new_empty(sum(map(len, rows)), first.shape[1], width + room, first.shape[-1])
    offset = 0
    for tensor, indices in zip(tensors, rows, strict=True):
        target = buffer[offset : offset + len(indices)]
        padding = max(width - tensor.shape[-2], 0)
        # Padding is masked, but what is masked must be finite.
        target[:, :, :padding] = 0
        kept = tensor[:, :, tensor.shape[-2] - (width - padding) :]
        target[:, :, padding:width] = kept if _is_all(indices, len(tensor)) else kept[indices.to(tensor.device)]
        offset += len(indices)
    return buffer


def _is_all(indices: Tensor, count: int) -> bool:
    return len(indices) == count and bool((indices == torch.arange(count)).all())


class SlotCache(DynamicCache):  # type: ignore[misc]
    """A cache of `SlotLayer`s. Layers with a sliding window keep all keys too."""

    layers: list[SlotLayer]

    def __init__(self) -> None:
        Cache.__init__(self, layer_class_to_replicate=SlotLayer)

    @property
    def bytes_per_token(self) -> int:
        """Size of the keys and values of one token."""
        tensors = [tensor for layer in self.layers if layer.is_initialized for tensor in (layer.keys, layer.values)]
        return sum(tensor.shape[1] * tensor.shape[-1] * tensor.element_size() for tensor in tensors)

    def keep(self, kept: Sequence[int], width: int) -> list[int]:
        """Drop rows, and slots before the last `width`. The last rows move into the places of dropped ones.

        Args:
            kept: indices of the rows to keep, ascending, at least one
            width: at least the number of tokens of every kept row

        Returns:
            the old index of each row
        """
        stay = [index for index in kept if index < len(kept)]
        moving = iter(kept[len(stay) :])
        staying = set(stay)
        order = [index if index in staying else next(moving) for index in range(len(kept))]
        for layer in self.layers:
            if layer.is_initialized:
                layer.keep(order, width)
        return order

    def holds(self, rows: int, slots: int) -> bool:
        """Whether the layers have exactly these rows and slots, as they do if the model uses this cache correctly."""
        used = [layer for layer in self.layers if layer.is_initialized]
        return bool(used) and all(
            type(layer) is SlotLayer
            and layer.keys.ndim == layer.values.ndim == 4
            and layer.keys.shape[0] == layer.values.shape[0] == rows
            and layer.keys.shape[-2] == layer.values.shape[-2] == slots
            for layer in used
        )


def gathered(caches: Sequence[SlotCache], rows: Sequence[Sequence[int]], width: int) -> SlotCache:
    """Move rows of several caches into a new one; the caches are emptied.

    Args:
        caches: of the same model
        rows: indices of the rows to take from each cache
        width: slots of the new cache, at least the number of tokens of every row
    """
    indices = [torch.tensor(numbers, dtype=torch.long) for numbers in rows]
    result = SlotCache()
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        layer = SlotLayer()
        if layers[0].is_initialized:
            layer.fill(layers, indices, width, ROOM)
        for source in layers:  # free each layer as soon as it is copied
            source.keys = source.values = source._buffers = None
        result.layers.append(layer)
    return result


def shifted(prefix: SlotCache, length: int, offsets: Sequence[int]) -> SlotCache:
    """Repeat one row's first tokens for several rows, each shifted right by its offset.

    Slot j of a row with offset d holds token j - d. The first d slots are padding.

    Args:
        prefix: a cache of one row; left as it is
        length: slots of the result
        offsets: of the rows
    """
    tokens = (torch.arange(length) - torch.tensor(offsets)[:, None]).clamp(min=0)
    result = SlotCache()
    for source in prefix.layers:
        layer = SlotLayer()
        if source.is_initialized:
            index = tokens.to(source.keys.device)
            keys, values = source.keys[0][:, index].transpose(0, 1), source.values[0][:, index].transpose(0, 1)
            layer.update(keys.contiguous(), values.contiguous())
        result.layers.append(layer)
    return result
