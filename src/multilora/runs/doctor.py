"""What is installed, which devices there are, and what a recipe would need: a report to paste into an issue."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from multilora.cache import cache_root
from multilora.errors import RecipeError
from multilora.foreign_errors import own_errors
from multilora.recipe import HUB_PREFIX, Recipe

PACKAGES = ("multilora", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors")
# What some option of a recipe needs -> import name, and what installs it.
OPTIONAL = {
    "bitsandbytes": "multilora[quantization]",
    "lm_eval": "multilora[lm-eval]",
    "sacrebleu": "multilora[metrics]",
    "rouge_score": "multilora[metrics]",
    "gguf": "multilora[gguf]",
    "submitit": "multilora[cluster]",
    "trl": "multilora[trl]",
    "torchao": "torchao",
    "flash_attn": "flash-attn",
    "deepspeed": "deepspeed",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_CACHE",
    "OMP_NUM_THREADS",
    "WORLD_SIZE",
    "RANK",
    "TOKENIZERS_PARALLELISM",
)


@own_errors
def diagnose(recipe: str | Path | Mapping[str, Any] | None = None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Collect JSON-compatible facts; nothing secret is among them.

    Args:
        recipe: what to check: see `Recipe.load`
        overrides: `key.of.value=value` strings
    """
    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "optional": {name: _version(name.replace("_", "-")) for name in OPTIONAL},
        "devices": _devices(),
        "memory_gib": _memory(),
        "cache": {"folder": str(cache_root()), "free_gib": _free(cache_root())},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    if recipe is not None:
        facts["recipe"] = _needs(recipe, overrides)
    return facts


def _needs(source: str | Path | Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """What a recipe needs: its problems, packages that are missing, and what comes from the hub."""
    try:
        recipe = Recipe.load(source, overrides, check_writable=True)
    except RecipeError as error:
        return {"problems": error.problems}
    packages = {name: OPTIONAL[name] for name in _packages(recipe)}
    hub = [section.path for section in recipe.tasks if (section.path or "").startswith(HUB_PREFIX)]
    name = recipe.model.name_or_path
    local = name == "nano" or Path(name).is_dir()
    return {
        "problems": [],
        "packages": {name: _version(name.replace("_", "-")) for name in packages},
        "install": sorted({packages[name] for name in packages if find_spec(name) is None}),
        "from_hub": ([] if local else [name]) + [path for path in hub if path is not None],
        "output": {"folder": recipe.output_dir, "free_gib": _free(Path(recipe.output_dir))},
    }


def _packages(recipe: Recipe) -> Iterator[str]:
    if recipe.model.quantization != "none":
        yield "bitsandbytes"
    if (recipe.model.attn_implementation or "").startswith("flash_attention"):
        yield "flash_attn"
    if recipe.evaluation.protocol == "harness":
        yield "lm_eval"
    metrics = {section.metric for section in recipe.tasks}
    if metrics & {"bleu", "chrf"}:
        yield "sacrebleu"
    if "rouge_l" in metrics:
        yield "rouge_score"
    trackers = recipe.training.get("report_to", [])
    yield from (name for name in ("tensorboard", "wandb") if name in trackers)
    if recipe.training.get("deepspeed") is not None:
        yield "deepspeed"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps")
    threads = torch.get_num_threads()
    return [*found, f"cpu, {os.cpu_count()} cores, {threads} thread{'s' if threads > 1 else ''}"]


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):  # not on every system
        return None


def _free(path: Path) -> float | None:
    for folder in (path, *path.absolute().parents):
        if folder.is_dir():
            return round(shutil.disk_usage(folder).free / 2**30, 1)
    return None
