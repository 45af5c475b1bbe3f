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
from multilora.saved_adapter import read_saved_adapter
from multilora.study.load import Setting, Study

Stage = Literal["base", "trial", "final", "single"]

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
    stage: `trial` of a search, scored on the validation split; `final`, scored on the evaluation split; `single`, like
        `final` but trained on one task; or `base`
    method, setting, seed: which run it is; the base has none
    recipe: complete; its output_dir is the folder of the cell
    mixture: of a single-task run, the recipe of the final run with the same seed, on all of whose tasks it is scored
    """

    id: str
    recipe: Recipe
    stage: Stage = "base"
    method: str = ""
    setting: Setting | None = None
    seed: int = 0
    mixture: Recipe | None = None

    @property
    def trained_on(self) -> str | None:
        """The task of a single-task run; None for a run on the mixture."""
        return None if self.mixture is None else self.recipe.tasks[0].name

    @property
    def scored_by(self) -> Recipe:
        """The recipe whose tasks the cell is scored on."""
        return self.recipe if self.mixture is None else self.mixture

    @property
    def path(self) -> Path:
        """The folder of the cell."""
        return Path(self.recipe.output_dir)

    @property
    def label(self) -> str:
        """What the cell is, in words."""
        if self.stage == "base":
            return "base"
        kind = self.stage if self.trained_on is None else f"only {self.trained_on}"
        return " ".join([self.method, *setting_texts(self.setting or {}), f"seed {self.seed}", f"({kind})"])


def setting_texts(setting: Setting) -> list[str]:
    """The values of a setting with short names, such as `learning_rate 0.005`."""
    return [f"{key.partition('.')[2]} {value}" for key, value in setting.items()]


class StudyCells:
    """The cells of a study.

    Attributes:
        study: see `Study`
        base: the cell that scores the base
        trials: method -> one list per setting of its grid, with one cell per seed; no lists without a search
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.base = self._base()
        search_seeds = [] if study.search is None else study.search.seeds
        self.trials = {
            method: [
                [self._run("trial", method, setting, seed) for seed in search_seeds]
                for setting in study.settings(method)
                if search_seeds
            ]
            for method in study.methods
        }
        self._finals: dict[tuple[str, str], list[Cell]] = {}
        self._singles: dict[tuple[str, str, int], Cell] = {}

    def finals(self, method: str, setting: Setting) -> list[Cell]:
        """The final runs of a method with the chosen setting, one per seed."""
        key = (method, str(setting))
        if key not in self._finals:
            self._finals[key] = [self._run("final", method, setting, seed) for seed in self.study.seeds]
        return self._finals[key]

    def single(self, final: Cell, task: str, examples: int) -> Cell:
        """The run like a final run, but on one task of the mixture alone.

        Args:
            final: the final run
            task: name
            examples: how many of the task the final run was trained on, counting repetitions
        """
        key = (final.id, task, examples)
        if key not in self._singles:
            recipe = single_task_recipe(final.recipe, task, examples)
            name, recipe = self._placed(cache_key(VERSION, "single", *key), recipe)
            self._singles[key] = Cell(name, recipe, "single", final.method, final.setting, final.seed, final.recipe)
        return self._singles[key]

    def _run(self, stage: Stage, method: str, setting: Setting, seed: int) -> Cell:
        split = "validation" if stage == "trial" else "eval"
        recipe = self.study.recipe_of(method, setting, seed, split, self.study.path)
        name, recipe = self._placed(training_key(recipe), recipe)
        return Cell(name, recipe, stage, method, setting, seed)

    def _base(self) -> Cell:
        study, method = self.study, next(iter(self.study.methods))
        recipe = study.recipe_of(method, study.settings(method)[0], study.seeds[0], "eval", study.path)
        parts: list[Any] = [recipe.model.model_dump(exclude_defaults=True, exclude={"name_or_path"})]
        parts += [
            _task_values(recipe),
            recipe.data.model_dump(exclude={"num_proc"}, exclude_defaults=True),
            *_files(recipe),
        ]
        return Cell(*self._placed(cache_key(VERSION, "base", *parts), recipe))

    def _placed(self, key: str, recipe: Recipe) -> tuple[str, Recipe]:
        name = key[:ID_LENGTH]
        return name, recipe.model_copy(update={"output_dir": str(self.study.path / CELLS / name)})


def single_task_recipe(recipe: Recipe, task: str, examples: int) -> Recipe:
    """The recipe of a run on one of its tasks: everything as in the recipe but the mixture and the number of steps.

    Args:
        recipe: of the mixture
        task: name
        examples: to train on; the plan rounds them up to full steps
    """
    values = recipe.values()
    values["tasks"] = [section for section in values["tasks"] if section["name"] == task]
    values["tasks"][0].pop("weight", None)
    values["mixture"] = {"seed": recipe.mixture.seed, "total_examples": examples}
    for key in ("max_steps", "num_train_epochs"):
        values["training"].pop(key, None)
    if recipe.evaluation.best_by not in ("macro", "worst"):
        values["evaluation"]["best_by"] = "macro"  # it may be another task
    return Recipe.load(values)


def training_key(recipe: Recipe) -> str:
    """A key of what defines the training of a recipe; it does not depend on where its files are."""
    without: dict[str, Any] = {**WITHOUT_EFFECT, "model": {"name_or_path"}, "tasks": True, "training": True}
    values = recipe.model_dump(mode="json", exclude=without, exclude_defaults=True)
    values["adapter"].pop("init_from", None)
    if recipe.adapter.method == "multilora":  # also if it is the default, which another version may change
        values.setdefault("optimizer", {})["scale_lr_factor"] = recipe.scale_lr_factor
    if not values.get("loss"):  # it has only options without effect
        values.pop("loss", None)
    training = {
        name: typed(name, value) for name, value in recipe.training.items() if name not in WITHOUT_EFFECT["training"]
    }
    return cache_key(VERSION, values, training, _task_values(recipe), _files(recipe))


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
        contents.append(list(_contents(read_saved_adapter(recipe.adapter.init_from).folder, MODEL_FILES)))
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
