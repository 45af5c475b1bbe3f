"""The values of a recipe's `adapter.method`: MultiLoRA, any other PEFT method, or all weights (`full`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from multilora.errors import AdapterError, nearest

FULL = "full"
# Used if the recipe does not set them.
DEFAULTS: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}


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
    reasons["adalora"] = (
        "needs its own training loop, which changes ranks and adds to the loss and is not supported; use lora or "
        "another method"
    )
    return reasons


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

    LoRA's alpha defaults to its rank, so that its scaling constant is 1, as in MultiLoRA.

    Raises:
        AdapterError, ValueError, TypeError: options that the method does not accept.
    """
    names = option_names(method)
    values: dict[str, Any] = {key: value for key, value in DEFAULTS.items() if key in names}
    values.update(options)
    if method == "lora" and "lora_alpha" not in values:
        values["lora_alpha"] = values.get("r", 8)
    return config_classes()[method](**values)
