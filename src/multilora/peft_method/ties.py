"""Separate adapted weights from other modules that share them, such as a head tied to the embeddings."""

from __future__ import annotations

import copy
from collections import Counter

from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from multilora.errors import AdapterError


def untie_adapted_weights(model: nn.Module) -> list[str]:
    """Copy every adapted weight that another module shares, because merging would change that module too.

    `tie_word_embeddings` becomes False in the config, so that the copy is saved and loaded.

    Args:
        model: with adapters of any PEFT method, not merged

    Returns:
        the names of the modules that have their own weight now

    Raises:
        AdapterError: the model cannot be untied, because its config also determines how it scales its output.
    """
    owners = Counter(id(item) for module in model.modules() for item in module._parameters.values() if item is not None)
    token_layers = [module for module in model.modules() if isinstance(module, TrainableTokensLayer)]
    # They change the same rows on both sides of the tie.
    tied = {id(item) for layer in token_layers if layer.tied_adapter for item in (layer, layer.tied_adapter)}
    adapted = [
        (name, module.get_base_layer())
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and id(module) not in tied
    ]
    untied = []
    for name, base in adapted:
        for key, parameter in base._parameters.items():
            if parameter is not None and owners[id(parameter)] > 1:
                _check_can_be_untied(model, name)
                owners[id(parameter)] -= 1
                setattr(base, key, copy.deepcopy(parameter))
                untied.append(name)
    if untied:
        for module in model.modules():
            if isinstance(module, PreTrainedModel) and getattr(module.config, "tie_word_embeddings", False):
                module.config.tie_word_embeddings = False
    return untied


def _check_can_be_untied(model: nn.Module, name: str) -> None:
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise AdapterError(
            f"cannot merge the adapter of {name!r}: its weight is tied to another module of this encoder-decoder "
            f"({type(model).__name__}), which cannot be untied; use the model unmerged, or leave this module out of "
            "target_modules"
        )
