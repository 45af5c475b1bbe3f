"""Data and models that were passed in memory: a run keeps its own copy, since the cache may be deleted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multilora.files import atomic_folder, copy_file
from multilora.recipe import ModelSection, Recipe
from multilora.recipe.in_memory import DATA_KEYS, data_folder
from multilora.recipe.loaded_model import models_folder

FOLDER = "data"
BASE_FOLDER = "base"


def with_kept_data(recipe: Recipe, run: Path) -> Recipe:
    """Return the recipe with the paths of the copies in a run's folder."""
    tasks = []
    for section in recipe.tasks:
        update = {key: str(run / FOLDER / Path(value).name) for key, value in _in_memory(section)}
        tasks.append(section.model_copy(update=update))
    model = recipe.model
    if _is_loaded_model(model.name_or_path):
        model = model.model_copy(update={"name_or_path": str(_kept_base(model, run))})
    return recipe.model_copy(update={"tasks": tasks, "model": model})


def keep_data(recipe: Recipe, run: Path) -> None:
    """Copy the data and the model into a run's folder, unless they are there."""
    for section in recipe.tasks:
        for _, value in _in_memory(section):
            target = run / FOLDER / Path(value).name
            if not target.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                copy_file(Path(value), target)
    if _is_loaded_model(recipe.model.name_or_path):
        base = _kept_base(recipe.model, run)
        if not base.is_dir():
            with atomic_folder(base) as new_folder:
                source = recipe.model.name_or_path
                shutil.copytree(source, new_folder, copy_function=_link_or_copy, dirs_exist_ok=True)


def name_kept_base(model: Any, kept: Recipe) -> None:
    """Let an adapter record the copy of its base in the run's folder.

    Args:
        model: to be trained
        kept: from `with_kept_data`
    """
    for config in getattr(model, "peft_config", {}).values():
        if _is_loaded_model(config.base_model_name_or_path or ""):
            config.base_model_name_or_path = kept.model.name_or_path


def _in_memory(section: object) -> Iterator[tuple[str, str]]:
    """The keys of a task whose data was passed in memory, and the files in the cache."""
    for key in DATA_KEYS:
        value = getattr(section, key)
        if value is not None and Path(value).parent == data_folder().resolve():
            yield key, value


def _is_loaded_model(path: str) -> bool:
    """Whether a folder in the cache holds a model that was passed in memory."""
    return Path(path).parent == models_folder().resolve()


def _kept_base(section: ModelSection, run: Path) -> Path:
    return run / BASE_FOLDER / Path(section.name_or_path).name


def _link_or_copy(source: str, target: str) -> None:
    """Weights are large, and these files are never changed: on the same file system, both are one file."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
