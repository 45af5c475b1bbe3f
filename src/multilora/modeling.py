"""Load the base model and attach an adapter: MultiLoRA, any other PEFT method, or none for full fine-tuning."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from multilora.base_checks import (
    check_complete,
    check_decoder,
    check_finite,
    check_sizes,
    damaged_file,
    warn_of_slow_dtype,
)
from multilora.errors import AdapterError, InputError, nearest
from multilora.initialise import load_saved_adapter
from multilora.methods import FULL, adapter_config
from multilora.nano import NANO_DIR
from multilora.progress import no_transformers_bar
from multilora.recipe.schema import AdapterSection, ModelSection
from multilora.saved_adapter import continued_options, read_saved_adapter
from multilora.vocabulary import resize_for_adapter


def model_source(section: ModelSection) -> str:
    """The folder or hub name for `model.name_or_path`; `nano` is the embedded base."""
    return str(NANO_DIR) if section.name_or_path == "nano" else section.name_or_path


def load_tokenizer(section: ModelSection, source: str | None = None) -> Any:
    """Load the tokenizer of the base, or of `source`.

    Raises:
        InputError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    return _from_pretrained(
        AutoTokenizer, source or model_source(section), section, trust_remote_code=section.trust_remote_code
    )


def load_model_config(section: ModelSection) -> Any:
    """Load the config of a causal language model, without the weights.

    Raises:
        InputError: it cannot be loaded, has an impossible size, or is the config of an encoder.
    """
    config = load_config(section)
    check_decoder(config, section)
    return config


def load_config(section: ModelSection) -> Any:
    """Load the config of any model, without the weights.

    Raises:
        InputError: it cannot be loaded, or has an impossible size.
    """
    from transformers import AutoConfig

    config = _from_pretrained(AutoConfig, model_source(section), section, trust_remote_code=section.trust_remote_code)
    check_sizes(config, section)
    return config


def load_base(section: ModelSection, *, trainable: bool = False, source: str | None = None) -> Any:
    """Load the base model in `section.dtype`, or in float32 if `trainable`.

    Raises:
        InputError: it cannot be loaded, is an adapter, or lacks weights.
    """
    from transformers import AutoModelForCausalLM

    if best_device().type == "cpu":
        warn_of_slow_dtype(section.dtype)
    dtype = torch.float32 if trainable else getattr(torch, section.dtype)
    quantized: dict[str, Any] = {}
    if section.quantization != "none":
        from transformers import BitsAndBytesConfig

        is_4bit = section.quantization == "4bit"
        settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype} if is_4bit else {}
        config = BitsAndBytesConfig(load_in_4bit=is_4bit, load_in_8bit=not is_4bit, **settings)
        # Quantized weights stay on the device they are loaded to.
        quantized = {"quantization_config": config, "device_map": {"": str(best_device())}}
    with no_transformers_bar():
        model, loading = _from_pretrained(
            AutoModelForCausalLM,
            source or model_source(section),
            section,
            dtype=dtype,
            attn_implementation=section.attn_implementation,
            trust_remote_code=section.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below
            **quantized,
        )
    check_complete(model, loading, source or section.name_or_path)
    if section.quantization == "none":
        check_finite(model, source or section.name_or_path)
    check_decoder(model.config, section)
    return model


def _from_pretrained(cls: Any, source: str, section: ModelSection, **options: Any) -> Any:
    try:
        return cls.from_pretrained(source, revision=section.revision, **options)
    except (ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged config or checkpoint makes transformers raise errors of any kind
        kind = "folder" if Path(source).is_dir() else "name"
        damaged = damaged_file(Path(source))
        file = f"{damaged.name}: " if damaged else ""
        raise InputError(
            f"model.name_or_path: cannot load {source!r} ({file}{' '.join(str(error).split())[:300]}); "
            f"check the {kind}: `nano`, a folder saved by save_pretrained, or owner/name on the hub"
        ) from error


def attach(model: Any, section: AdapterSection, *, seed: int) -> Any:
    """Prepare the model for training: returns a `PeftModel`, or the model itself for `full`.

    Args:
        model: the base
        section: the adapter section of the recipe
        seed: for the adapter's initialisation; set right before it, so that the result depends on nothing else

    Raises:
        AdapterError: no module matches `target_modules` or `modules_to_save`, one cannot be adapted, or the adapter in
            `init_from` does not fit.
    """
    if section.method == FULL:
        model.requires_grad_(True)
        return model
    from peft import get_peft_model

    torch.manual_seed(seed)
    options, saved = section.options, None
    if section.init_from is not None:
        with _named("adapter.init_from"):
            saved = read_saved_adapter(section.init_from)
            options = continued_options(section.method, options, saved)
    config = adapter_config(section.method, options)
    _check_modules_to_save(model, getattr(config, "modules_to_save", None) or [])
    try:
        model = get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        names = sorted({name.rsplit(".", 1)[-1] for name, item in model.named_modules() if _is_linear(item)})
        raise AdapterError(
            f"adapter: {' '.join(str(error).split())} The linear modules of this model are: {', '.join(names)}"
        ) from error
    if saved is not None:
        with _named("adapter.init_from"):
            load_saved_adapter(model, saved, section.options.get("target_modules"))
    return model


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Put the key of the recipe in front of the message of an AdapterError."""
    try:
        yield
    except AdapterError as error:
        raise AdapterError(f"{key}: {error}") from error


def _check_modules_to_save(model: Any, names: Collection[str]) -> None:
    """Check that every name matches a module; PEFT ignores those that do not."""
    modules = [name for name, _ in model.named_modules(remove_duplicate=False)]
    unmatched = [name for name in names if not any(module.endswith(name) for module in modules)]
    if unmatched:
        known = sorted({name.rsplit(".", 1)[-1] for name in modules if name and not name.rsplit(".", 1)[-1].isdigit()})
        hints = ", ".join(f"{name!r}{nearest(name, known)}" for name in unmatched)
        raise AdapterError(
            f"adapter.modules_to_save: no module of this model is called {hints}; its modules are {', '.join(known)}"
        )


def _is_linear(module: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def load_adapter(model: Any, source: str) -> Any:
    """Load an adapter of any PEFT method onto its base, for inference.

    The base is resized first if the adapter was trained with added tokens, see `multilora.vocabulary`.

    Raises:
        AdapterError: it cannot be loaded, or was made for another base.
    """
    from peft import PeftModel
    from peft.utils import load_peft_weights

    import multilora.peft_method  # noqa: F401  (registers the method)

    try:
        resize_for_adapter(model, load_peft_weights(source, device="cpu"), source)
        return PeftModel.from_pretrained(model, source)
    except (ImportError, MemoryError, torch.OutOfMemoryError, AdapterError):
        raise
    except Exception as error:  # PEFT raises many kinds for files that are missing, damaged or of another base
        reason = " ".join(str(error).split())[:300]
        raise AdapterError(
            f"cannot load the adapter {source!r} ({reason}); expected a folder saved by PEFT or a name on the hub, "
            "made for this base"
        ) from error


def max_positions(config: Any) -> int | None:
    """The maximum sequence length in tokens, or None if the model's config has none."""
    return getattr(config, "max_position_embeddings", None) or None


def uses_flash_attention(model: Any) -> bool:
    """Whether transformers uses any version of flash attention for this model."""
    from transformers.utils.generic import is_flash_attention_requested

    return bool(is_flash_attention_requested(model.config))


def best_device() -> torch.device:
    """The device that the Trainer would choose: the current accelerator, or else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def to_device(model: Any, device: torch.device) -> Any:
    """Move the model to a device; a quantized model stays where it was loaded."""
    return model if getattr(model, "is_quantized", False) else model.to(device)


def parameter_counts(model: Any) -> tuple[int, int]:
    """(trainable, total) parameter counts; tied parameters count once, those sharded by DeepSpeed in full."""
    counts = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in counts if trained), sum(n for n, _ in counts)
