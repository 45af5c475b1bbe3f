"""Verify the export of a `PeftModel` in memory, on the weights of its base and without changing it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from multilora.errors import RunError
from multilora.export.factors import base_key
from multilora.export.prompts import random_prompts
from multilora.export.proof_compare import compare, tolerance_of
from multilora.export.proof_outputs import outputs_of
from multilora.export.proof_result import Proof
from multilora.modeling import max_positions, uses_flash_attention
from multilora.peft_method import MultiLoraLayer

logger = logging.getLogger(__name__)

NOT_EQUAL = "The files load as another adapter. Export the run with --to merged, and report this as a bug"


def verify_in_memory(
    model: PeftModel, folder: Path, adapter_name: str, saved_names: Collection[str]
) -> Proof | None:
    """Compare a LoRA in a folder with the MultiLoRA adapter of a model, on random tokens in the model's precision.

    Args:
        model: unchanged afterwards
        folder: with the exported adapter
        adapter_name: of the adapter
        saved_names: names of the exported tensors, in the checkpoint or in the base

    Returns:
        the proof, or None if the base is not a transformers model that reads tokens

    Raises:
        RunError: they differ.
    """
    base = model.get_base_model()
    if not isinstance(base, PreTrainedModel) or base.main_input_name != "input_ids":
        logger.warning("%s does not read tokens, so only the files of the export are checked", type(base).__name__)
        return None
    prompts = random_prompts(base.config.get_text_config().vocab_size, max_positions(base.config))
    tolerance = tolerance_of(base)
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        original = shared_copy(model)
        original.base_model.enable_adapter_layers()
        original.set_adapter(adapter_name)
        # Before the first call of either, because PEFT reads the state of the base when it loads an adapter, and
        # bitsandbytes then undoes its repacking for the CPU, with a loss of precision.
        lora = load_lora(bare_base(original, saved_names), folder)
        for item in (original, lora):
            if uses_flash_attention(item):
                item.set_attn_implementation("eager")  # flash attention supports neither float32 nor the CPU
        reference = outputs_of(original, prompts)
        reader = f"PEFT {version('peft')}, on the base in memory"
        return compare(outputs_of(lora, prompts), reference, prompts, tolerance, NOT_EQUAL, reader)
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
