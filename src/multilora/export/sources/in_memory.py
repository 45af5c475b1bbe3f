"""Copies of a `PeftModel` in memory that share its parameters."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from multilora.errors import RunError
from multilora.export.factors import base_key
from multilora.peft_method import MultiLoraLayer

NOT_EQUAL = "The files load as another adapter. Export the run with --to merged, and report this as a bug"


@contextmanager
def unchanged_gradients(model: nn.Module) -> Iterator[None]:
    """Restore which parameters need gradients, which PEFT changes when it activates or loads an adapter."""
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, required in trainable:
            parameter.requires_grad_(required)


def load_lora(base: Any, folder: Path) -> PeftModel:
    """Load an exported adapter as stock PEFT does.

    Raises:
        RunError: it cannot be loaded.
    """
    try:
        return PeftModel.from_pretrained(base, str(folder))
    except Exception as error:
        raise RunError(
            f"PEFT cannot load the exported adapter ({' '.join(str(error).split())[:300]}). Export the run with "
            "--to merged, and report this as a bug; nothing was written"
        ) from error


def shared_copy(model: PeftModel) -> PeftModel:
    """Return a copy that shares the parameters, except for quantized ones, which change when they are used."""
    quantized = {id(parameter) for layer in _quantized_layers(model) for parameter in layer.parameters()}
    return copy.deepcopy(model, {id(item): item for item in model.parameters() if id(item) not in quantized})


def bare_base(model: PeftModel, overwritten: Collection[str]) -> Any:
    """Return a copy of the base without adapters.

    It shares the quantized layers, and the parameters except for those that loading an adapter overwrites.

    Args:
        model: unchanged
        overwritten: names of the adapter's tensors, in the checkpoint or in the base
    """
    keys = {base_key(name) for name in overwritten}
    named = list(model.named_parameters(remove_duplicate=False))
    copied = {id(parameter) for name, parameter in named if base_key(name) in keys}
    shared: dict[int, Any] = {id(parameter): parameter for _, parameter in named if id(parameter) not in copied}
    twin = copy.deepcopy(model, shared | {id(layer): layer for layer in _quantized_layers(model)})
    for module in twin.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.set_adapter([])  # else `unload` keeps the active adapter's copy in the base
    return twin.unload()


def _quantized_layers(model: PeftModel) -> list[nn.Module]:
    return [
        module.get_base_layer()
        for module in model.modules()
        if isinstance(module, MultiLoraLayer) and module.quantization_backend is not None
    ]
