"""The values of a recipe's `adapter.method`: MultiLoRA, any other PEFT method, or all weights (`full`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from multilora.errors import AdapterError, nearest

FULL = "full"
# Options of PEFT's configs that are not choices of a recipe.
INTERNAL_OPTIONS = (
    "peft_type",
    "task_type",
    "auto_mapping",
    "peft_version",
    "inference_mode",
    "base_model_name_or_path",
    "revision",
)
# Used if the recipe does not set them.
DEFAULTS: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
# Methods that do not adapt all linear layers: PEFT's own choice for the model is used if the recipe has none.
OWN_TARGETS = {"adaption_prompt", "ia3", "ln_tuning", "shadow", "trainable_tokens"}
# Options without a usable default.
REQUIRED = {"adaption_prompt": ("adapter_len", "adapter_layers"), "trainable_tokens": ("token_indices",)}


def config_classes() -> dict[str, type]:
    """Lower-case name of each PEFT method, including MultiLoRA -> its config class."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    import multilora.peft_method  # noqa: F401  (registers the method)

    return {str(key.value).lower(): value for key, value in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def unsupported_methods() -> dict[str, str]:
    """Name of each PEFT method that multilora cannot train -> the reason."""
    from peft import PromptLearningConfig

    virtual_tokens = (
        "puts virtual tokens before the prompt, which the loss per task does not support; use a method that adapts "
        "weights"
    )
    reasons = {
        name: virtual_tokens for name, config in config_classes().items() if issubclass(config, PromptLearningConfig)
    }
    reasons |= {
        "adalora": "needs its own training loop, which changes ranks and adds to the loss and is not supported; use "
        "lora or another method",
        "lily": "routes by the mean over all tokens of a batch, so that a prediction depends on padding and on the "
        "other rows; use lora or another method",
        "poly": "needs a task id in every forward pass, which evaluation and generation do not have; use multilora",
        "xlora": "mixes LoRA adapters trained before; train a lora or multilora run",
    }
    return reasons


def _is_set(value: Any) -> bool:
    return value not in (None, False)


def _needs_data(value: Any) -> bool:
    return value in ("eva", "corda", "lora_ga")


_BEFORE_TRAINING = "needs a pass over the data before training, which is not supported; leave it out"
_ADDS_TO_LOSS = "needs a term in the loss that is not supported; leave it out"
# method -> (option, whether a value is refused, reason)
_OPTIONS: dict[str, list[tuple[str, Callable[[Any], bool], str]]] = {
    "ia3": [
        (
            "target_modules",
            lambda value: value == "all-linear",
            "`all-linear` cannot be loaded again with ia3; leave it out for PEFT's choice, or list modules",
        ),
    ],
    "lora": [
        (
            "layer_replication",
            _is_set,
            "makes layers that share weights, so that the model cannot be merged or saved; leave it out",
        ),
        (
            "alora_invocation_tokens",
            _is_set,
            "adapts what follows the last occurrence of these tokens in a row, but rows can contain several examples; "
            "leave it out",
        ),
        ("arrow_config", _is_set, "routes between LoRA adapters trained before; leave it out"),
        ("megatron_config", _is_set, "needs the layers of Megatron, which models from transformers lack; leave it out"),
        ("use_qalora", _is_set, "needs a GPTQ base, which model.quantization does not offer; leave it out"),
        ("kasa_config", _is_set, _ADDS_TO_LOSS),
        ("monteclora_config", _is_set, _ADDS_TO_LOSS),
        ("eva_config", _is_set, _BEFORE_TRAINING),
        ("corda_config", _is_set, _BEFORE_TRAINING),
        ("lora_ga_config", _is_set, _BEFORE_TRAINING),
        (
            "loftq_config",
            _is_set,
            "changes the base weights, which are not saved with the adapter; use model.quantization instead",
        ),
        ("init_lora_weights", _needs_data, _BEFORE_TRAINING),
        (
            "init_lora_weights",
            lambda value: str(value).startswith("pissa_niter"),
            "changes the base by a random decomposition, which differs when the adapter is loaded; use pissa",
        ),
    ],
}


def unsupported_options(method: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Option of a supported method -> the reason why its value is refused."""
    return {
        key: reason
        for key, is_refused, reason in _OPTIONS.get(method, ())
        if key in options and is_refused(options[key])
    }


def option_names(method: str) -> list[str]:
    """The keys that `adapter:` accepts besides `method`.

    Raises:
        AdapterError: the method is unknown.
    """
    if method == FULL:
        return []
    classes = config_classes()
    if method not in classes:
        known = sorted([*classes, FULL])
        raise AdapterError(f"unknown method {method!r}{nearest(method, known)}; known methods are {', '.join(known)}")
    return [item.name for item in dataclasses.fields(classes[method]) if item.init]


def adapter_config(method: str, options: Mapping[str, Any]) -> Any:
    """The PEFT config of a method with these options, and `DEFAULTS` for options that are not set.

    LoRA's alpha defaults to its rank, so that its scaling constant is 1, as in MultiLoRA. The methods in `OWN_TARGETS`
    keep PEFT's default for `target_modules`.

    Raises:
        AdapterError, ValueError, TypeError: options that are missing, unsupported or not accepted by the method.
    """
    names = option_names(method)
    missing = [key for key in REQUIRED.get(method, ()) if not options.get(key)]
    if missing:
        raise AdapterError(
            f"method `{method}` needs {' and '.join(missing)}; set {'it' if len(missing) == 1 else 'them'}"
        )
    refused = [f"{key}: {reason}" for key, reason in unsupported_options(method, options).items()]
    if refused:
        raise AdapterError("; ".join(refused))
    values: dict[str, Any] = {key: value for key, value in DEFAULTS.items() if key in names}
    if method in OWN_TARGETS:
        values.pop("target_modules", None)
    values.update(options)
    if method == "lora" and "lora_alpha" not in values:
        values["lora_alpha"] = values.get("r", 8)
    return config_classes()[method](**values)
