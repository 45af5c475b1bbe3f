"""Which tensors of a checkpoint are which parameters of the model.

transformers renames tensors when it loads them, and converts some of them: the experts of a layer, one tensor each in
the files, become one stacked parameter. The same functions of transformers are used here, in both directions, for one
group of tensors at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from multilora.export.merged.tensor_files import DTYPES, Slot


class NotByShardsError(Exception):
    """This model cannot be merged shard by shard; says why. The export then merges it in memory."""


@dataclass
class Group:
    """Tensors of the checkpoint that make parameters of the model together.

    keys: in the files
    names: of the parameters
    pattern: of the converter that makes the parameters; None if one tensor is one parameter
    """

    keys: list[str]
    names: list[str] = field(default_factory=list)
    pattern: str | None = None


class Names:
    """The groups of a checkpoint.

    Args:
        model: the base on the meta device, without an adapter
        slots: the tensors of the checkpoint

    Attributes:
        groups: the group of each parameter that is in the files, by its name in the model
        unused: keys of tensors that are not in the model

    Raises:
        NotByShardsError: a conversion cannot be undone.
    """

    def __init__(self, model: Any, slots: Mapping[str, Slot]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self.model = model
        self.slots = slots
        self.shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        transforms = get_model_conversion_mapping(model)
        self._renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
        self._converters = [item for item in transforms if isinstance(item, WeightConverter)]
        self.groups: dict[str, Group] = {}
        self.unused: list[str] = []
        groups = self._group()
        # What a model loaded by `from_pretrained` has, and `revert_weight_conversion` reads.
        model._weight_conversions = [item for item in transforms if item.was_used()]
        for group in groups:
            if group.pattern is not None:
                self._check_reversible(group)
            self.groups |= dict.fromkeys(group.names, group)

    def _group(self) -> list[Group]:
        from transformers.core_model_loading import dot_natural_key

        groups: dict[str, Group] = {}
        for key in sorted(self.slots, key=dot_natural_key):
            name, pattern = self._rename(key)
            if name not in self.shapes:
                self.unused.append(key)
            elif pattern is None:
                groups[name] = Group([key], [name])
            else:
                groups.setdefault(name, Group([], [name], name)).keys.append(key)
        return list(groups.values())

    def _rename(self, key: str) -> tuple[str, str | None]:
        """As in transformers' `convert_and_load_state_dict_in_model`."""
        from transformers.core_model_loading import rename_source_key

        prefix, shapes = self.model.base_model_prefix, self.shapes
        name, pattern = rename_source_key(key, self._renamings, self._converters, prefix, shapes)
        if name not in shapes and key in shapes:
            name, pattern = rename_source_key(key, [], [], prefix, shapes)
        return name, pattern

    def _check_reversible(self, group: Group) -> None:
        """Convert there and back without data."""

        def empty(key: str) -> Tensor:
            slot = self.slots[key]
            return torch.empty(slot.shape, dtype=DTYPES.get(slot.dtype, torch.uint8), device="meta")

        try:
            parameters = self.parameters(group, empty)
            tensors = self.tensors(parameters)
        except Exception as error:  # conversions raise anything
            raise NotByShardsError(f"the conversion of {group.keys[0]} failed ({error})") from error
        group.names = list(parameters)
        wrong_shape = [name for name, value in parameters.items() if self.shapes.get(name) != tuple(value.shape)]
        if wrong_shape or {key: tuple(value.shape) for key, value in tensors.items()} != {
            key: self.slots[key].shape for key in group.keys
        }:
            raise NotByShardsError(f"the conversion of {group.keys[0]} cannot be undone")

    def parameters(self, group: Group, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The parameters of a group, by name, from the tensors that `read` returns for its keys."""
        if group.pattern is None:
            return {group.names[0]: read(group.keys[0])}
        converter: Any = None
        for key in group.keys:
            _, pattern = self._rename(key)
            if converter is None:
                converter = copy.deepcopy(next(item for item in self._converters if pattern in item.source_patterns))
            converter.add_tensor(group.pattern, key, pattern, read(key))
        values = converter.convert(group.pattern, model=self.model, config=self.model.config)
        return {name: _single(value) for name, value in values.items()}

    def tensors(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the checkpoint, by key, that whole groups of parameters are made of."""
        from transformers.core_model_loading import revert_weight_conversion

        tensors: dict[str, Tensor] = revert_weight_conversion(self.model, dict(parameters))
        return tensors


def _single(value: Any) -> Tensor:
    tensor: Tensor = value[0] if isinstance(value, list) else value
    return tensor
