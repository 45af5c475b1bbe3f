"""Checks of a base model: its config, and the weights as loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from multilora.errors import InputError
from multilora.recipe.schema import ModelSection

logger = logging.getLogger(__name__)

_INDEX = re.compile(r"\.\d+\.")
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


# dtype -> the capabilities of x86 processors that multiply it, as torch names them
_FAST_ON_X86 = {"bfloat16": ("amx_bf16", "avx512_bf16"), "float16": ("amx_fp16", "avx512_fp16")}


@lru_cache
def is_slow_on_cpu(dtype: str) -> bool:
    """Whether this processor is known to lack instructions for a dtype; torch then computes many times slower."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities.get("architecture") != "x86_64" or dtype not in _FAST_ON_X86:
        return False
    return not any(capabilities.get(name) for name in _FAST_ON_X86[dtype])


@lru_cache
def warn_of_slow_dtype(dtype: str) -> None:
    """Warn, once, if computing in a dtype is slow on this processor."""
    if is_slow_on_cpu(dtype):
        logger.warning(
            "model.dtype is %s, for which this CPU has no instructions: it is many times slower than float32; set "
            "model.dtype: float32",
            dtype,
        )


def damaged_file(folder: Path) -> Path | None:
    """The first safetensors file in a folder that cannot be opened."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError):
            return path
    return None


def check_sizes(config: Any, section: ModelSection) -> None:
    """Check that the sizes in a config are at least 1, before anything is made from them.

    Raises:
        InputError: names every size that is not.
    """
    sizes = {name: getattr(config.get_text_config(), name, None) for name in _SIZES}
    problems = [f"{name} is {size}" for name, size in sizes.items() if isinstance(size, int | float) and size < 1]
    if problems:
        raise InputError(
            f"model.name_or_path: in the config.json of {section.name_or_path!r}, {' and '.join(problems)}, expected "
            "at least 1; restore it, or save the model again with save_pretrained"
        )


def check_decoder(config: Any, section: ModelSection) -> None:
    """Check that tokens attend only to earlier ones; transformers loads BERT as a causal model too, with a warning.

    Raises:
        InputError: the config is that of an encoder.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    # A decoder of an encoder-decoder model, such as BART's, sets `is_decoder` itself.
    is_encoder = getattr(config, "is_decoder", None) is False and not getattr(config, "is_encoder_decoder", False)
    if is_encoder and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise InputError(
            f"model.name_or_path: {section.name_or_path!r} is an encoder ({config.model_type} with is_decoder: false), "
            "whose tokens see the answer that they should predict; give a causal language model, or set is_decoder in "
            "its config.json if it was trained as a decoder"
        )


def check_complete(model: Any, loading: Mapping[str, Any], source: str) -> None:
    """Check that all weights are the checkpoint's, and that the model has all of its layers.

    transformers initialises missing weights randomly and leaves further layers out, with a warning.

    Args:
        model: as loaded
        loading: the loading info of `from_pretrained`
        source: of the model, for the messages

    Raises:
        InputError: the model is an adapter, or weights are missing, of another shape or of further layers.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InputError(
            f"model.name_or_path: {source!r} is an adapter, which transformers loads together with its base; set "
            "model.name_or_path to the base and adapter.init_from to a folder with the adapter"
        )
    advice = "use the config.json and the weights of one model, saved together by save_pretrained"
    mismatches = [
        f"{name} is {list(shape)}, expected {list(expected)}"
        for name, shape, expected in sorted(loading["mismatched_keys"])
    ]
    if mismatches:
        raise InputError(
            f"model.name_or_path: {source!r} has {len(mismatches)} weights in another shape than its config "
            f"({_some(mismatches)}); {advice}"
        )
    unused = sorted(loading["unexpected_keys"])
    layers = _further_layers(unused, model)
    if layers:
        raise InputError(
            f"model.name_or_path: {source!r} has weights of layers that its config leaves out ({_some(layers)}); "
            f"num_hidden_layers or the like is too low in its config.json: {advice}"
        )
    if unused:
        logger.warning(
            "%s: %d weights are not used by %s (%s); is its config.json that of these weights?",
            source,
            len(unused),
            type(model).__name__,
            _some(unused),
        )
    missing = sorted(loading["missing_keys"])
    if missing:
        raise InputError(
            f"model.name_or_path: {source!r} lacks {len(missing)} weights of {type(model).__name__} "
            f"({_some(missing)}), which would be random; {advice}"
        )


def _further_layers(unused: list[str], model: Any) -> list[str]:
    """The layers of unused weights whose name is that of a weight of the model except for the layer's index."""
    patterns = {_INDEX.sub(".*.", name) for name in model.state_dict()}
    layers = (
        name[: match.end() - 1]
        for name in unused
        if (match := _INDEX.search(name)) and _INDEX.sub(".*.", name) in patterns
    )
    return list(dict.fromkeys(layers))


def check_finite(model: Any, source: str) -> None:
    """Check that no weight is NaN or infinite; processes that wait for the weights of another have none to check.

    Raises:
        InputError: names one of them.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and parameter.is_floating_point() and not torch.isfinite(parameter).all():
            raise InputError(
                f"model.name_or_path: {source!r} has NaN or infinite weights ({name}); restore or download it again"
            )


def _some(items: list[str]) -> str:
    return ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")
