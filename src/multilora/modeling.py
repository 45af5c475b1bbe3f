"""The base model, and what is trained on it: MultiLoRA, any other PEFT method, or all weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from multilora.errors import AdapterError, InputError, nearest
from multilora.recipe import AdapterSection, ModelSection

FULL = "full"
# Applied where the recipe is silent. alpha = r makes LoRA's constant 1, as MultiLoRA's default is.
ADAPTER_DEFAULTS: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def _methods() -> dict[str, type]:
    """PEFT method name in lower case -> its config class; MultiLoRA among them."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    import multilora.peft_method  # noqa: F401  (registers the method)

    return {str(key.value).lower(): value for key, value in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def adapter_option_names(method: str) -> list[str]:
    """The keys that `adapter:` takes beside `method`.

    Raises:
        AdapterError: no such method.
    """
    if method == FULL:
        return []
    methods = _methods()
    if method not in methods:
        known = sorted([*methods, FULL])
        raise AdapterError(f"unknown method {method!r}{nearest(method, known)}; known are {', '.join(known)}")
    return [item.name for item in dataclasses.fields(methods[method]) if item.init]


def adapter_config(section: AdapterSection) -> Any:
    """The PEFT config of an adapter section.

    Raises:
        AdapterError, ValueError, TypeError: options the method does not accept.
    """
    config_cls = _methods()[section.method]
    names = adapter_option_names(section.method)
    options: dict[str, Any] = {key: value for key, value in ADAPTER_DEFAULTS.items() if key in names}
    options.update(section.options)
    if section.method == "lora" and "lora_alpha" not in options:
        options["lora_alpha"] = options.get("r", 8)
    return config_cls(**options)


def model_source(section: ModelSection) -> str:
    """The folder or hub name behind `model.name_or_path`; `nano` is the embedded base."""
    if section.name_or_path == "nano":
        from multilora.nano import NANO_DIR

        return str(NANO_DIR)
    return section.name_or_path


def load_tokenizer(section: ModelSection, source: str | None = None) -> Any:
    """The base's tokenizer (or that of `source`).

    Raises:
        InputError: it cannot be found.
    """
    from transformers import AutoTokenizer

    return _from_pretrained(
        AutoTokenizer, source or model_source(section), section, trust_remote_code=section.trust_remote_code
    )


def load_base(section: ModelSection, *, trainable: bool = False, source: str | None = None) -> Any:
    """The base model in `section.dtype`, or in float32 where its own weights are to be trained.

    Raises:
        InputError: it cannot be found.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # transformers' own bar for a load of seconds
    dtype = torch.float32 if trainable else getattr(torch, section.dtype)
    quantized: dict[str, Any] = {}
    if section.quantization != "none":
        from transformers import BitsAndBytesConfig

        four = section.quantization == "4bit"
        settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype} if four else {}
        config = BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=not four, **settings)
        # Quantised weights stay where they are loaded.
        quantized = {"quantization_config": config, "device_map": {"": str(best_device())}}
    return _from_pretrained(
        AutoModelForCausalLM,
        source or model_source(section),
        section,
        dtype=dtype,
        attn_implementation=section.attn_implementation,
        trust_remote_code=section.trust_remote_code,
        **quantized,
    )


def _from_pretrained(cls: Any, source: str, section: ModelSection, **options: Any) -> Any:
    try:
        return cls.from_pretrained(source, revision=section.revision, **options)
    except (OSError, ValueError) as error:
        kind = "folder" if Path(source).is_dir() else "name"
        raise InputError(
            f"model.name_or_path: cannot load {source!r} ({' '.join(str(error).split())[:300]}); "
            f"check the {kind}: `nano`, a folder saved by save_pretrained, or owner/name on the hub"
        ) from error


def attach(model: Any, section: AdapterSection, *, seed: int) -> Any:
    """The model ready to train: a `PeftModel`, or the model itself for `full`.

    Args:
        seed: of the adapter's initialisation; set just before, so that it depends on nothing else

    Raises:
        AdapterError: no module matches `target_modules`, or one cannot be adapted.
    """
    if section.method == FULL:
        model.requires_grad_(True)
        return model
    from peft import get_peft_model

    torch.manual_seed(seed)
    config = adapter_config(section)
    try:
        return get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        names = sorted({name.rsplit(".", 1)[-1] for name, item in model.named_modules() if _is_linear(item)})
        raise AdapterError(
            f"adapter: {' '.join(str(error).split())} The linear modules of this model are: {', '.join(names)}"
        ) from error


def _is_linear(module: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def best_device() -> torch.device:
    """Where the Trainer would put a model: the first accelerator, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def place(model: Any, device: torch.device) -> Any:
    """The model on a device; a quantised one is where it was loaded, and stays."""
    return model if getattr(model, "is_quantized", False) else model.to(device)


def parameter_counts(model: Any) -> tuple[int, int]:
    """(trainable, all) parameters; tied ones once, those that DeepSpeed has spread over processes whole."""
    counts = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in counts if trained), sum(n for n, _ in counts)
