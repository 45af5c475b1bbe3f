"""Start from a saved adapter: load its weights into a new adapter of the same function, and check that all fit."""

from __future__ import annotations

import logging
import math
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from torch import Tensor

from multilora.errors import AdapterError
from multilora.peft_method import MultiLoraLayer, ParamWrapper
from multilora.peft_method.from_lora import branches_from_lora
from multilora.saved_adapter import SavedAdapter

logger = logging.getLogger(__name__)

PREFIX = "base_model.model."


def load_saved_adapter(model: Any, saved: SavedAdapter, target_modules: Any = None) -> None:
    """Give a new adapter the function of a saved one. The weights do not change if an error is raised.

    Args:
        model: a `PeftModel` with the options of `multilora.saved_adapter.continued_options`
        saved: an adapter of the same method or, for `multilora`, a LoRA
        target_modules: as written in the recipe, if it is

    Raises:
        AdapterError: the weights are damaged or not finite, or do not fit the model.
    """
    state, base_weights = adapter_state(model, saved, target_modules)
    changed = changed_base_weights(model, base_weights)
    if changed:
        raise AdapterError(
            f"{saved.path}: contains weights of the base that differ from the model's ({_some(changed)}), as after "
            "adding tokens; merge the adapter into its base, and set model.name_or_path to the result"
        )
    set_peft_model_state_dict(model, state)


def adapter_state(
    model: Any, saved: SavedAdapter, target_modules: Any = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read the weights of a saved adapter for a new adapter of a model, and check that all fit.

    Args:
        model, saved, target_modules: as for `load_saved_adapter`; the model may be on the meta device

    Returns:
        (the entries of the checkpoint that are the new adapter's, weights of the base that PEFT saves with some
        adapters, by their names in the model)

    Raises:
        AdapterError: the weights are damaged or not finite, or do not fit the model.
    """
    state = read_weights(saved)
    _warn_of_another_base(model, saved)
    config = model.active_peft_config
    if saved.method != config.peft_type.lower():
        state = _as_branches(model, saved, state)
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    base_weights = {key: state.pop(key) for key in base_weights_in(state, model)}
    _check_modules(model, saved, target_modules, state, expected)
    shapes = [
        f"{_short(key)} is {list(state[key].shape)}, expected {list(value.shape)}"
        for key, value in expected.items()
        if state[key].shape != value.shape
    ]
    if shapes:
        raise AdapterError(
            f"{saved.path}: has {len(shapes)} of {len(expected)} parameters in another shape ({_some(shapes)}); "
            f"{_which_base(saved)}"
        )
    return state, base_weights


def base_weights_in(state: Iterable[str], model: Any) -> list[str]:
    """The keys of an adapter's checkpoint that are weights of the base, such as embeddings of a resized vocabulary.

    Args:
        state: the keys of the checkpoint
        model: a `PeftModel` with such an adapter
    """
    of_adapter = get_peft_model_state_dict(model, save_embedding_layers=False)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [key for key in state if key not in of_adapter and key in parameters]


def read_weights(saved: SavedAdapter) -> dict[str, Tensor]:
    """Read the tensors of a saved adapter.

    Raises:
        AdapterError: the file is damaged, or a value is not finite.
    """
    try:
        state: dict[str, Tensor] = load_peft_weights(str(saved.folder), device="cpu")
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise AdapterError(
            f"{saved.folder}: the weights cannot be read ({' '.join(str(error).split())[:200]}); the file is damaged, "
            "restore it or save the adapter again"
        ) from error
    bad = [_short(key) for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise AdapterError(
            f"{saved.folder}: {len(bad)} of {len(state)} weights have NaN or infinite values ({_some(bad)}); give an "
            "earlier adapter, such as one of the run's checkpoints"
        )
    return state


def _warn_of_another_base(model: Any, saved: SavedAdapter) -> None:
    base = getattr(model.get_base_model(), "name_or_path", None)
    if saved.base and base and _same_place(saved.base) != _same_place(base):
        logger.warning(
            "%s: this adapter was trained on the base %s, and the model is %s; it has the same function only if both "
            "have the same weights",
            saved.path,
            saved.base,
            base,
        )


def _same_place(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _as_branches(model: Any, saved: SavedAdapter, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the LoRA of every adapted module as branches. What belongs to no such module stays."""
    state = dict(state)
    adapter = model.active_adapter
    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, MultiLoraLayer):
            continue
        keys = [f"{PREFIX}{name}.lora_{part}.weight" for part in "AB"]
        if not all(key in state for key in keys):
            continue
        lora_A, lora_B = (state.pop(key) for key in keys)
        full_name = module.full_name(name) if isinstance(module, ParamWrapper) else name
        scaling, rank = lora_scaling(saved.config, full_name)
        initial = tuple(getattr(module, part)[adapter].detach() for part in module.adapter_layer_names)
        stack = math.prod(module.stack)
        A, B, _ = initial
        expected = [(stack * rank, A.shape[-1]), (B.shape[-2], stack * rank)]
        if [tuple(lora_A.shape), tuple(lora_B.shape)] != expected:
            raise AdapterError(
                f"{saved.path}: the LoRA of {name} is {list(lora_A.shape)} and {list(lora_B.shape)}, expected "
                f"{list(expected[0])} and {list(expected[1])} for its rank {rank} on this base; {_which_base(saved)}"
            )
        if module.stack:  # PEFT's layout for stacked experts
            lora_A = lora_A.view(*module.stack, rank, -1)
            lora_B = lora_B.view(-1, rank, *module.stack).permute(2, 0, 1)
        c = module.scaling_constant[adapter]
        if c == 0:
            raise AdapterError(f"adapter.lora_alpha: 0 gives the branches of {name} no effect; set it to r or more")
        try:
            branches = branches_from_lora(lora_A, lora_B, scaling / c, initial)
        except AdapterError as error:
            raise AdapterError(f"{saved.path}: {name}: {error}") from None
        for part, value in zip(module.adapter_layer_names, branches, strict=True):
            state[f"{PREFIX}{name}.{part}"] = value
    return state


def lora_scaling(config: dict[str, Any], name: str) -> tuple[float, int]:
    """(scaling, rank) of a LoRA on a module."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    rank = ranks.get(get_pattern_key(ranks.keys(), name), config.get("r", 8))
    alpha = alphas.get(get_pattern_key(alphas.keys(), name), config.get("lora_alpha", 8))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), rank


def changed_base_weights(model: Any, base_weights: dict[str, Tensor]) -> list[str]:
    """The names of the weights of the base that differ from the model's, or have another shape."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return [
        _short(key)
        for key, value in base_weights.items()
        if value.shape != parameters[key].shape or not torch.equal(value.to(parameters[key]), parameters[key].detach())
    ]


def _check_modules(
    model: Any, saved: SavedAdapter, target_modules: Any, state: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    """Check that the saved adapter has the parameters of the new one, and no others."""
    missing, unexpected = _modules(expected.keys() - state.keys()), _modules(state.keys() - expected.keys())
    if not (missing or unexpected):
        return
    modules = {name.replace(".base_layer", "") for name, _ in model.get_base_model().named_modules()}
    unknown = [name for name in unexpected if name.replace(".base_layer", "") not in modules]
    if unknown:
        raise AdapterError(
            f"{saved.path}: adapts {len(unknown)} modules that this base does not have ({_some(unknown)}); "
            f"{_which_base(saved)}"
        )
    details = []
    if missing:
        details.append(f"no weights for {_some(missing)}")
    if unexpected:
        details.append(f"weights for {_some(unexpected)}, which the new adapter does not train")
    saved_targets = saved.config.get("target_modules")
    advice = (
        "the file is incomplete, save the adapter again"
        if target_modules is None
        else f"target_modules is {target_modules!r} in the recipe and {saved_targets!r} in the adapter; leave it out "
        "of the recipe"
    )
    raise AdapterError(f"{saved.path}: has {' and '.join(details)}; {advice}")


def _modules(keys: Iterable[str]) -> list[str]:
    """The names of the modules that have these LoRA or MultiLoRA parameters; other keys stay as they are."""
    names = (re.sub(r"\.(lora|multilora)_\w+(\.weight|\.bias)?$", "", _short(key)) for key in keys)
    return sorted(set(names))


def _which_base(saved: SavedAdapter) -> str:
    return f"use the base it was trained on ({saved.base})" if saved.base else "use the base it was trained on"


def _short(key: str) -> str:
    return key.removeprefix(PREFIX)


def _some(items: list[str]) -> str:
    return ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")
