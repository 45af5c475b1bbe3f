"""A saved adapter on the modules of its base, without the weights of the base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

from multilora.errors import AdapterError, MultiLoraError
from multilora.export.factors import TO_MERGED, AdapterFactors, adapter_factors, base_key, check_initialisation
from multilora.initialise import adapter_state
from multilora.saved_adapter import SavedAdapter, lora_variant


def saved_factors(base: Any, saved: SavedAdapter, load_base: Callable[[], Any]) -> AdapterFactors:
    """Read the update of a saved adapter.

    Args:
        base: on the meta device, see `multilora.export.base.empty_base`; it is changed
        saved: of method multilora or lora
        load_base: loads the base with its weights. It is only called if PEFT saved weights of the base with the
            adapter, as it does for a resized vocabulary, to find out whether they differ.

    Raises:
        AdapterError: the method has no low-rank factors, or the files are damaged or of another base.
    """
    config = _config(saved)
    try:
        model = get_peft_model(base, config, low_cpu_mem_usage=True)
    except MultiLoraError as error:
        raise AdapterError(f"{saved.path}: {error}") from error
    except Exception as error:  # PEFT raises errors of many kinds for options that it cannot use
        raise AdapterError(
            f"{saved.path}: adapter_config.json does not fit the base ({' '.join(str(error).split())[:300]}); restore "
            "it, or give the base that it was trained on"
        ) from error
    state, base_weights = adapter_state(model, saved)
    set_peft_model_state_dict(model, state, low_cpu_mem_usage=True)
    factors = adapter_factors(model)
    if base_weights:
        changed = _changed(base_weights, load_base)
        factors.saved |= {base_key(key): value for key, value in base_weights.items() if base_key(key) in changed}
    return factors


def _config(saved: SavedAdapter) -> PeftConfig:
    if saved.method not in ("multilora", "lora"):
        raise AdapterError(f"{saved.path}: method `{saved.method}` has no low-rank factors, so it is no LoRA; {TO_MERGED}")
    variant = lora_variant(saved) if saved.method == "lora" else ""
    if variant:
        raise AdapterError(f"{saved.path}: is a variant of LoRA ({variant}), which no plain LoRA can express; {TO_MERGED}")
    try:
        config = PeftConfig.from_pretrained(str(saved.folder))
        check_initialisation(config)
    except MultiLoraError as error:
        raise AdapterError(f"{saved.path}: {error}") from error
    except Exception as error:
        raise AdapterError(
            f"{saved.folder}: adapter_config.json cannot be used ({' '.join(str(error).split())[:300]}); restore it, "
            "or save the adapter again with save_pretrained"
        ) from error
    if saved.method == "lora":
        config.init_lora_weights = True  # the weights are overwritten; other initialisations read the base or data
    return config


def _changed(base_weights: dict[str, Any], load_base: Callable[[], Any]) -> set[str]:
    """The keys of the saved weights of the base that are not the base's."""
    stored = dict(load_base().named_parameters(remove_duplicate=False))
    return {
        base_key(key)
        for key, value in base_weights.items()
        if base_key(key) not in stored
        or value.shape != stored[base_key(key)].shape
        or not value.to(stored[base_key(key)]).equal(stored[base_key(key)].detach())
    }
