"""The weights of a base that was quantized for training.

The adapter was trained on the quantized weights: it also corrects their rounding, on the training data. So the weights
to merge it into are the quantized ones, dequantized, and not the original ones. What is written is then the function
that was trained, except for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.utils import get_quantization_kwargs, resolve_quantization_backend
from torch import Tensor

from multilora.errors import AdapterError
from multilora.export.merged.layers import LayerMerger


class DequantizedBase:
    """The base's weights by name: dequantized where training quantized them, else as in the files.

    Args:
        model: the base, quantized as for training, without an adapter
        read: reads a weight from the files
    """

    def __init__(self, model: Any, read: Callable[[str], Tensor]) -> None:
        options = get_quantization_kwargs(model)
        self._read = read
        self._layers = {
            f"{name}.weight": (module, backend)
            for name, module in model.named_modules()
            if (backend := resolve_quantization_backend(module, **options)) is not None
        }
        self.shapes = {name: (layer.out_features, layer.in_features) for name, (layer, _) in self._layers.items()}

    @torch.no_grad()
    def read(self, name: str) -> Tensor:
        """Read a weight.

        Raises:
            AdapterError: the quantization cannot be undone.
        """
        if name not in self._layers:
            return self._read(name)
        layer, backend = self._layers[name]
        try:
            weight: Tensor = backend.get_base_weight(layer)
        except (NotImplementedError, TypeError) as error:
            raise AdapterError(f"{name}: cannot be dequantized ({error}); export the adapter with --to lora") from error
        return weight.detach().cpu()


class DequantizedChanges:
    """The changes of an adapter, and all other weights that training quantized."""

    def __init__(self, base: DequantizedBase, merger: LayerMerger) -> None:
        self._base, self._merger = base, merger
        self.shapes = {**base.shapes, **merger.shapes}

    def merged(self, name: str) -> Tensor:
        """See `multilora.export.merged.shards.Changes`."""
        return self._merger.merged(name) if name in self._merger.shapes else self._base.read(name)

    def same(self, first: str, second: str) -> bool:
        """See `multilora.export.merged.shards.Changes`."""
        return self._merger.same(first, second)
