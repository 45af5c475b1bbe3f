"""Cells: the runs of a study, each in a folder named by a hash of what defines its training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from multilora.cache import cache_key, content_digest
from multilora.errors import InputError
from multilora.nano import NANO_DIR
from multilora.recipe import HUB_PREFIX, Recipe
from multilora.recipe.training_keys import typed
from multilora.references import is_reference
from multilora.runs.resume import WITHOUT_EFFECT
from multilora.study.load import Setting, Study

Stage = Literal["base", "trial", "final"]

# Part of every id: increase it when the same recipe would train on other examples or in another way.
VERSION = 1
ID_LENGTH = 12
CELLS = "cells"
# What defines a model in a folder; a model card, for one, does not.
MODEL_FILES = {".safetensors", ".bin", ".json", ".model", ".txt"}


@dataclass(frozen=True)
class Cell:
    """One run of a study, or the base without training.

    id: hash of what defines its training: the recipe, except for what cannot change the result, with the content of
        its files instead of their paths
    stage: `trial` of a search, scored on the validation split; `final`, scored on the evaluation split; or `base`
    method, setting, seed: which run it is; the base has none
    recipe: complete; its output_dir is the folder of the cell
    """

    id: str
    stage: Stage
    recipe: Recipe
    method: str = ""
    setting: Setting | None = None
    seed: int = 0

    @property
    def path(self) -> Path:
        """The folder of the cell."""
        return Path(self.recipe.output_dir)

    @property
    def label(self) -> str:
        """What the cell is, in words."""
        if self.stage == "base":
            return "base"
        return " ".join([self.method, *setting_texts(self.setting or {}), f"seed {self.seed}", f"({self.stage})"])


def setting_texts(setting: Setting) -> list[str]:
    """The values of a setting with short names, such as `learning_rate 0.005`."""
    return [f"{key.partition('.')[2]} {value}" for key, value in setting.items()]


def base_cell(study: Study) -> Cell:
    """The cell that scores the base."""
    method = next(iter(study.methods))
    recipe = study.recipe_of(method, study.settings(method)[0], study.seeds[0], "eval", study.path)
    parts = [recipe.model.model_dump(exclude_defaults=True, exclude={"name_or_path"})]
    parts += [_task_values(recipe), recipe.data.model_dump(exclude_defaults=True), _files(recipe)]
    return _cell(study, "base", recipe, cache_key(VERSION, "base", *parts))


def trial_cells(study: Study, method: str) -> list[list[Cell]]:
    """The trials of a method: one list per setting, with one cell per seed; empty without a search."""
    if study.search is None:
        return []
    return [
        [run_cell(study, "trial", method, setting, seed) for seed in study.search.seeds]
        for setting in study.settings(method)
    ]


def final_cells(study: Study, method: str, setting: Setting) -> list[Cell]:
    """The final runs of a method with the chosen setting, one per seed."""
    return [run_cell(study, "final", method, setting, seed) for seed in study.seeds]


def run_cell(study: Study, stage: Stage, method: str, setting: Setting, seed: int) -> Cell:
    """The cell of one run."""
    split = "validation" if stage == "trial" else "eval"
    recipe = study.recipe_of(method, setting, seed, split, study.path)
    return _cell(study, stage, recipe, training_key(recipe), method, setting, seed)


def training_key(recipe: Recipe) -> str:
    """A key of what defines the training of a recipe; it does not depend on where its files are."""
    without: dict[str, Any] = {**WITHOUT_EFFECT, "model": {"name_or_path"}, "tasks": True, "training": True}
    values = recipe.model_dump(mode="json", exclude=without, exclude_defaults=True)
    values["adapter"].pop("init_from", None)
    training = {
        name: typed(name, value) for name, value in recipe.training.items() if name not in WITHOUT_EFFECT["training"]
    }
    return cache_key(VERSION, values, training, _task_values(recipe), _files(recipe))


def _cell(
    study: Study,
    stage: Stage,
    recipe: Recipe,
    key: str,
    method: str = "",
    setting: Setting | None = None,
    seed: int = 0,
) -> Cell:
    name = key[:ID_LENGTH]
    recipe = recipe.model_copy(update={"output_dir": str(study.path / CELLS / name)})
    return Cell(name, stage, recipe, method, setting, seed)


def _task_values(recipe: Recipe) -> list[dict[str, Any]]:
    """The tasks without the paths of local files."""
    return [
        section.model_dump(mode="json", exclude_defaults=True, exclude={"path", "eval_path", "task", "metric"})
        for section in recipe.tasks
    ]


def _files(recipe: Recipe) -> list[Any]:
    """The content of everything that the recipe names; a name, if it is on the hub or in an installed package."""
    model = recipe.model.name_or_path
    folder = NANO_DIR if model == "nano" else Path(model)
    contents: list[Any] = [list(_contents(folder, MODEL_FILES)) if folder.is_dir() else model]
    if recipe.adapter.init_from is not None:
        contents.append(list(_contents(Path(recipe.adapter.init_from), MODEL_FILES)))
    for section in recipe.tasks:
        for path in (section.path, section.eval_path):
            is_local = path is not None and not path.startswith(HUB_PREFIX)
            contents.append(list(_contents(Path(path))) if path is not None and is_local else path)
        for reference in (section.task, section.metric):
            file = Path(reference.rpartition(":")[0]) if reference is not None and is_reference(reference) else None
            contents.append(content_digest(file) if file is not None and file.is_file() else reference)
    return contents


def _contents(path: Path, suffixes: set[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield (relative name, content hash) of a file, or of the files in a folder.

    Raises:
        InputError: there is no such file or folder.
    """
    if path.is_file():
        yield "", content_digest(path)
        return
    if not path.is_dir():
        raise InputError(f"{path}: does not exist; restore it, or change the path in the recipe")
    for file in sorted(path.rglob("*")):
        if file.is_file() and (suffixes is None or file.suffix in suffixes):
            yield str(file.relative_to(path)), content_digest(file)
