"""What a recipe's `adapter.method` can name: MultiLoRA, every other PEFT method, or all weights (`full`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from multilora.errors import AdapterError, nearest

FULL = "full"
# Used where the recipe is silent.
DEFAULTS: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def config_classes() -> dict[str, type]:
    """Name of each PEFT method in lower case -> its config class; MultiLoRA among them."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    import multilora.peft_method  # noqa: F401  (registers the method)

    return {str(key.value).lower(): value for key, value in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def unsupported_methods() -> dict[str, str]:
    """Name of each PEFT method that cannot be trained here -> why."""
    from peft import PromptLearningConfig

    virtual_tokens = (
        "puts virtual tokens before the prompt, which the loss per task does not support; use a method that adapts "
        "weights"
    )
    reasons = {
        name: virtual_tokens for name, config in config_classes().items() if issubclass(config, PromptLearningConfig)
    }
    reasons["adalora"] = (
        "changes ranks and adds to the loss in a training loop of its own, which is not supported; use lora, or "
        "another method"
    )
    return reasons


def option_names(method: str) -> list[str]:
    """The keys that `adapter:` takes beside `method`.

    Raises:
        AdapterError: no such method.
    """
    if method == FULL:
        return []
    classes = config_classes()
    if method not in classes:
        known = sorted([*classes, FULL])
        raise AdapterError(f"unknown method {method!r}{nearest(method, known)}; known are {', '.join(known)}")
    return [item.name for item in dataclasses.fields(classes[method]) if item.init]


def adapter_config(method: str, options: Mapping[str, Any]) -> Any:
    """The PEFT config of a method with these options, ours where the recipe is silent.

    LoRA's alpha defaults to its rank, so that its constant is 1 as MultiLoRA's is.

    Raises:
        AdapterError, ValueError, TypeError: options that the method does not accept.
    """
    names = option_names(method)
    values: dict[str, Any] = {key: value for key, value in DEFAULTS.items() if key in names}
    values.update(options)
    if method == "lora" and "lora_alpha" not in values:
        values["lora_alpha"] = values.get("r", 8)
    return config_classes()[method](**values)
