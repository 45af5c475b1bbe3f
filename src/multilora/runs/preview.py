"""Preview for `multilora plan`: summary of the plan, its cost on this machine, one rendered example per task.

A preview is cached until the recipe, its data, its model, a package or the machine changes. Reading it from the cache
imports neither torch nor transformers and is therefore fast.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from multilora.cache import cache_key, cache_root
from multilora.errors import RecipeError
from multilora.files import files_of, write_json
from multilora.foreign_errors import own_errors
from multilora.recipe import HUB_PREFIX, Recipe
from multilora.references import is_reference

PACKAGES = ("multilora", "torch", "transformers", "tokenizers", "peft", "datasets")
# Variables that select devices and processes, and therefore affect rows per step and cost.
ENVIRONMENT = ("WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "ACCELERATE_")


@own_errors
def plan_preview(
    source: str | Path | Mapping[str, Any] | Recipe, overrides: Iterable[str] = (), *, measure: bool = True
) -> dict[str, Any]:
    """Summarize the plan of a recipe as JSON-compatible values, from the cache if possible.

    Args:
        source: path of a YAML file, its content, or a `Recipe`
        overrides: `key.of.value=value` strings
        measure: also run two steps to measure time and memory

    Raises:
        InputError: the recipe, the data or the model cannot be used.
    """
    overrides = list(overrides)
    key = preview_key(source, overrides, measured=measure)
    preview = None if key is None else _read(key)
    if preview is None:
        preview = _make(source, overrides, measure)
        if key is not None:
            _file(key).parent.mkdir(parents=True, exist_ok=True)
            write_json(_file(key), preview)
    return preview


def _make(source: Any, overrides: list[str], measure: bool) -> dict[str, Any]:
    recipe = Recipe.load(source, overrides)  # before the seconds that importing torch takes
    from dataclasses import asdict

    from multilora.data.overlap import overlap
    from multilora.modeling import parameter_counts
    from multilora.training.prepare import prepare
    from multilora.training.step_cost import step_cost

    prepared = prepare(recipe)
    trainable, total = parameter_counts(prepared.model)
    return {
        "base": recipe.model.name_or_path,
        "dtype": recipe.model.dtype,
        "method": recipe.adapter.method,
        "output": recipe.output_dir,
        **prepared.plan.as_dict(),
        "trainable_parameters": trainable,
        "total_parameters": total,
        "overlap": {name: asdict(entry) for name, entry in overlap(prepared.recipe.tasks).items()},
        "cost": asdict(step_cost(prepared)) if measure else None,
        "examples": {
            name: [{"text": text, "trained": trained} for text, trained in prepared.plan.rendered(name)]
            for name in prepared.plan.task_names
        },
    }


def preview_key(
    source: str | Path | Mapping[str, Any] | Recipe, overrides: Iterable[str], *, measured: bool
) -> str | None:
    """Return the cache key of a preview, or None if it cannot be cached.

    Previews are not cached for data or models on the hub, for tasks and metrics in Python, and for invalid recipes.

    Args:
        source, overrides: as in `plan_preview`
        measured: whether the preview contains the measured cost
    """
    try:
        values, problems = Recipe.read(source, overrides)
        recipe = Recipe.model_validate(values)
    except (RecipeError, ValidationError):
        return None
    paths = _local_paths(recipe)
    if problems or paths is None:
        return None
    code = sorted(Path(__file__).parents[1].rglob("*.py"))
    state = [entry for path in (*paths, *code) for entry in _state(path)]
    versions = [version(name) for name in PACKAGES]
    return cache_key(recipe.model_dump(mode="json"), os.getcwd(), versions, state, measured, _machine())


def _local_paths(recipe: Recipe) -> list[Path] | None:
    """Return the model and data paths of a recipe that is entirely local, else None."""
    for task in recipe.tasks:
        on_hub = task.path is None and not task.name.startswith("nano/")
        in_python = task.task is not None or is_reference(task.metric or "")
        if on_hub or in_python:
            return None
    name = recipe.model.name_or_path
    names = [str(Path(__file__).parents[1] / "nano") if name == "nano" else name]
    if recipe.adapter.init_from is not None:
        names.append(recipe.adapter.init_from)
    names += [path for task in recipe.tasks for path in (task.path, task.eval_path) if path is not None]
    if any(path.startswith(HUB_PREFIX) for path in names):
        return None
    paths = [file for path in names for file in files_of(str(Path(path).expanduser()))]
    return paths if all(path.exists() for path in paths) else None


def _state(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (path, size, modification time) of a file, or of every file in a folder."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    for file in files:
        stat = file.stat()
        yield str(file.resolve()), stat.st_size, stat.st_mtime_ns


def _machine() -> list[Any]:
    """Return devices and processes, as far as they are known without torch."""
    variables = {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)}
    gpus = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    return [os.cpu_count(), gpus, variables]


def _file(key: str) -> Path:
    return cache_root() / "plans" / f"{key}.json"


def _read(key: str) -> dict[str, Any] | None:
    try:
        preview: dict[str, Any] = json.loads(_file(key).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return preview
