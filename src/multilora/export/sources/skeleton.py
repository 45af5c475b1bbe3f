"""A saved adapter on the modules of its base, without the weights of the base."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from multilora.errors import AdapterError, MultiLoraError
from multilora.export.factors import TO_MERGED, AdapterFactors, adapter_factors, base_key, check_initialisation
from multilora.initialise import adapter_state
from multilora.saved_adapter import SavedAdapter, lora_variant


def saved_factors(base: Any, saved: SavedAdapter, load_base: Callable[[], Any]) -> AdapterFactors:
    """Read the update of a saved adapter.

    Args:
        base: on the meta device, see `multilora.export.sources.base.empty_base`; it is changed
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
    _place(model, state)
    factors = adapter_factors(model)
    factors.base = _recorded_base(saved, base)
    if base_weights:
        changed = _changed(base_weights, load_base)
        factors.saved |= {base_key(key): value for key, value in base_weights.items() if base_key(key) in changed}
    return factors


def _config(saved: SavedAdapter) -> PeftConfig:
    if saved.method not in ("multilora", "lora"):
        raise AdapterError(
            f"{saved.path}: method `{saved.method}` has no low-rank factors, so it is no LoRA; {TO_MERGED}"
        )
    variant = lora_variant(saved) if saved.method == "lora" else ""
    if variant:
        raise AdapterError(
            f"{saved.path}: is a variant of LoRA ({variant}), which no plain LoRA can express; {TO_MERGED}"
        )
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
        _check_numbers(saved, config)
        config.init_lora_weights = True  # the weights are overwritten; other initialisations read the base or data
    return config


def _check_numbers(saved: SavedAdapter, config: Any) -> None:
    """PEFT computes with the numbers of a LoRA's config as they are; MultiLoRA's config checks its own."""
    ranks = {"r": config.r} | {f"rank_pattern[{key!r}]": value for key, value in (config.rank_pattern or {}).items()}
    alphas = {"lora_alpha": config.lora_alpha}
    alphas |= {f"alpha_pattern[{key!r}]": value for key, value in (config.alpha_pattern or {}).items()}
    for name, value in ranks.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise AdapterError(f"{saved.path}: {name} is {value!r}, expected a whole number of at least 1")
    for name, value in alphas.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise AdapterError(f"{saved.path}: {name} is {value!r}, expected a finite number")


def _recorded_base(saved: SavedAdapter, base: Any) -> str:
    """The hub name in the adapter's config, which is right on every machine, or else the place of the base here."""
    is_hub_name = saved.base and re.fullmatch(r"[\w.-]+/[\w.-]+", saved.base) and not Path(saved.base).exists()
    return str(saved.base if is_hub_name else base.name_or_path)


def _place(model: PeftModel, state: dict[str, Tensor]) -> None:
    """Make the tensors of a checkpoint the adapter's parameters. PEFT would move them to the base's device, meta."""
    named = dict(model.named_parameters(remove_duplicate=False))
    names = {id(parameter): name for name, parameter in named.items()}
    for key, parameter in get_peft_model_state_dict(model, state_dict=named, save_embedding_layers=False).items():
        owner, _, last = names[id(parameter)].rpartition(".")
        setattr(model.get_submodule(owner), last, nn.Parameter(state[key], requires_grad=False))


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
