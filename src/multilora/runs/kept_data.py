"""Data that was passed in memory: a run keeps its own copy, since the cache may be deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from multilora.files import copy_file
from multilora.recipe import Recipe
from multilora.recipe.in_memory import DATA_KEYS, data_folder

FOLDER = "data"


def with_kept_data(recipe: Recipe, run: Path) -> Recipe:
    """Return the recipe with the paths of the copies in a run's folder."""
    tasks = []
    for section in recipe.tasks:
        update = {key: str(run / FOLDER / Path(value).name) for key, value in _in_memory(section)}
        tasks.append(section.model_copy(update=update))
    return recipe.model_copy(update={"tasks": tasks})


def keep_data(recipe: Recipe, run: Path) -> None:
    """Copy the data into a run's folder, unless it is there."""
    for section in recipe.tasks:
        for _, value in _in_memory(section):
            target = run / FOLDER / Path(value).name
            if not target.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                copy_file(Path(value), target)


def _in_memory(section: object) -> Iterator[tuple[str, str]]:
    """The keys of a task whose data was passed in memory, and the files in the cache."""
    for key in DATA_KEYS:
        value = getattr(section, key)
        if value is not None and Path(value).parent == data_folder().resolve():
            yield key, value
