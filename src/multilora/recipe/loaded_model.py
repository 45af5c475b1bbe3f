"""A model in memory as the base of a recipe: it is saved in the cache, so that the recipe names it like any other."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multilora.cache import cache_root
from multilora.errors import RecipeError
from multilora.files import checksum
from multilora.progress import no_transformers_bar

DTYPES = ("float32", "bfloat16", "float16")


def models_folder() -> Path:
    """The folder of models that were passed in memory."""
    return cache_root() / "models"


def with_model_in_folder(section: Any) -> Any:
    """Return the `model` section of a recipe with the folder of a model that is in memory.

    Args:
        section: `{"name_or_path": model, "tokenizer": tokenizer}`, and the other keys of the section; its `dtype` is by
            default that of the model. A section without a model in memory is returned as it is.

    Raises:
        RecipeError: there is no tokenizer, or the folder would not hold the same model.
    """
    values: dict[str, Any] = dict(section) if isinstance(section, Mapping) else {"name_or_path": section}
    model: Any = values.get("name_or_path")
    if not hasattr(model, "state_dict"):
        return section
    problem = _problem(model)
    if problem:
        raise RecipeError([f"model: is a {type(model).__name__} in memory, {problem}"])
    tokenizer = values.pop("tokenizer", None)
    if not hasattr(tokenizer, "save_pretrained"):
        raise RecipeError(
            [
                f"model: is a {type(model).__name__} in memory without its tokenizer; give both: "
                '{"name_or_path": model, "tokenizer": tokenizer}'
            ]
        )
    dtype = str(model.dtype).removeprefix("torch.")
    default = {"dtype": dtype} if dtype in DTYPES else {}
    return {**default, **values, "name_or_path": _saved(model, tokenizer)}


def _problem(model: Any) -> str | None:
    """Why a folder cannot hold a model, and what to do."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        return (
            "which has an adapter; give its base, and the folder of the saved adapter as adapter.init_from, or merge "
            "them (merge_and_unload)"
        )
    if not isinstance(model, PreTrainedModel):
        return "expected a model of transformers; train others with multilora.MultiTaskTrainer"
    if getattr(model, "is_quantized", False):
        return "which is quantized; give the name of the original model, and set model.quantization"
    loaded_as = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    if type(model) is not loaded_as:
        name = getattr(loaded_as, "__name__", "nothing")
        return (
            f"and a saved {type(model.config).__name__} is loaded as {name}; give a causal language model of "
            "transformers, or train it with multilora.MultiTaskTrainer"
        )
    return None


def _saved(model: Any, tokenizer: Any) -> str:
    """Save a model and its tokenizer in a folder that is named after their content."""
    name = type(model).__name__
    try:
        models_folder().mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=models_folder()))
    except OSError as error:
        reason = error.strerror or error
        raise RecipeError([f"model: the cache {models_folder()} cannot be written ({reason}); set HF_HOME"]) from None
    try:
        with no_transformers_bar():
            model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digest = hashlib.sha256("".join(f"{path.relative_to(folder)} {checksum(path)}\n" for path in files).encode())
        target = models_folder() / f"{name}-{digest.hexdigest()[:16]}"
        if not target.is_dir():
            os.replace(folder, target)
    except Exception as error:  # save_pretrained raises errors of many kinds for what it cannot save
        reason = " ".join(str(error).split())[:300]
        raise RecipeError([f"model: the {name} in memory cannot be saved in {models_folder()} ({reason})"]) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return str(target)
