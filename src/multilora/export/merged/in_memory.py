"""Write a merged model from a model in memory, for models that cannot be merged shard by shard."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from multilora.errors import AdapterError
from multilora.export.merged.layers import check_mergeable, merge_module, wrapped_modules
from multilora.peft_method.ties import untie_adapted_weights


def save_merged(model: PeftModel, folder: Path) -> None:
    """Merge the active adapters, and write the model with `save_pretrained`.

    Each layer is merged in float32 and rounded once to the dtype of its base. Memory: the model and one layer in
    float32.

    Args:
        model: its modules are replaced; its parameters are not changed
        folder: of the export

    Raises:
        AdapterError: the adapters cannot be merged, or the base is not a transformers model or is quantized.
    """
    base: Any = model.get_base_model()
    if not hasattr(base, "save_pretrained"):
        raise AdapterError(
            f"the base is a {type(base).__name__}, expected a transformers model; export it with --to lora"
        )
    if getattr(base, "is_quantized", False):
        raise AdapterError(
            "the base of this model is quantized, and merging into quantized weights would round the update away; save "
            "the adapter with save_pretrained, and export that folder"
        )
    check_mergeable(model)
    untie_adapted_weights(base)
    for name, module in wrapped_modules(base).items():
        parent, _, child = name.rpartition(".")
        try:
            setattr(base.get_submodule(parent), child, _merged(module))
        except AdapterError as error:
            raise AdapterError(f"{name}: {error}") from error
    tied = getattr(base.config, "tie_word_embeddings", False)  # configs of image models have no such key
    if tied and not base.config.is_encoder_decoder and not _still_tied(base):
        base.config.tie_word_embeddings = False
    base.save_pretrained(str(folder))


def _merged(module: Any) -> nn.Module:
    """The plain module with merged weights, in the dtype of its base."""
    inner = module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module.get_base_layer()
    dtype = next(item.dtype for item in inner.parameters() if item.is_floating_point())
    own = copy.deepcopy(module).to(torch.promote_types(dtype, torch.float32))
    merged = merge_module(own).to(dtype)
    for name, value in merged.state_dict().items():
        if not torch.isfinite(value).all():
            raise AdapterError(f"{name}: the merged weight is not finite in {dtype}; export the adapter with --to lora")
    return merged


def _still_tied(base: Any) -> bool:
    return all(
        torch.equal(base.get_parameter(first), base.get_parameter(second))
        for first, second in base.all_tied_weights_keys.items()
    )
