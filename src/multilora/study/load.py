"""Load a study file: check it as a whole, and resolve the recipe of every cell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from multilora.errors import RecipeError, nearest
from multilora.recipe import Recipe
from multilora.recipe.load import describe_problem, read_yaml
from multilora.references import absolute_reference, is_reference
from multilora.study.schema import SECTIONS, MethodSection, StudySchema

DEFAULT_VALIDATION_SHARE = 0.1

# `section.key` -> value
Setting = dict[str, Any]


class Study(StudySchema):
    """The options of a study. `Study.load` also checks the recipe of every cell.

    Relative paths are relative to the current directory, as in a recipe.
    """

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | Study) -> Study:
        """Load a study file and check it, without loading a model or data.

        Args:
            source: path of a YAML file, its content as a mapping, or a study

        Raises:
            RecipeError: with every problem, of the study file and of the recipes that it describes.
        """
        if isinstance(source, Study):
            return source
        label = str(source) if isinstance(source, str | Path) else "study"
        if isinstance(source, str | Path):
            values = read_yaml(Path(source), "study", "`recipe:` and `methods:`")
        else:
            values = dict(source)
        try:
            study = cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError([describe_problem(cls, item) for item in error.errors()], label) from None
        problems = [*_check_search(study), *_check_seeds(study), *_check_names(study)]
        base, base_problems = _base_recipe(study)
        problems += base_problems
        if base is not None:
            study = study.model_copy(
                update={
                    "recipe": base,
                    "output_dir": _absolute(study.output_dir),
                    "forgetting": study.forgetting.model_copy(update={"path": _absolute(study.forgetting.path)}),
                }
            )
            problems += [*_check_evaluation(study), *_check_forgetting(study), *_check_recipes(study)]
            if study.single_task is not None and len(base["tasks"]) == 1:
                problems.append("single_task: the recipe has one task, on which every method is trained; leave it out")
        if problems:
            raise RecipeError(list(dict.fromkeys(problems)), label)
        return study

    @property
    def base_recipe(self) -> dict[str, Any]:
        """The values of the recipe that all methods share."""
        assert isinstance(self.recipe, dict)  # after loading
        return self.recipe

    @property
    def path(self) -> Path:
        """The study folder."""
        return Path(self.output_dir)

    def settings(self, method: str) -> list[Setting]:
        """The settings of a method that are tried: every combination of its grid; one empty setting without a grid."""
        grid = self.methods[method].grid
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]

    def recipe_of(self, method: str, setting: Setting, seed: int, split: str, output_dir: Path) -> Recipe:
        """The complete recipe of a cell.

        Args:
            method: a name in `methods`
            setting: one of its `settings`
            seed: of the adapter and of the order of the examples
            split: on which the cell is scored, `validation` or `eval`
            output_dir: of the run

        Raises:
            RecipeError: the method and the setting do not fit.
        """
        section: MethodSection = self.methods[method]
        values = dict(self.base_recipe)
        adapter = section.adapter
        init_from = {} if adapter.init_from is None else {"init_from": adapter.init_from}
        values["adapter"] = {"method": adapter.method, **init_from, **adapter.options}
        for name in SECTIONS[1:]:
            values[name] = {**values.get(name, {}), **getattr(section, name)}
        for key, value in setting.items():
            name, _, option = key.partition(".")
            values[name] = {**values[name], option: value}
        values["training"] = {**values["training"], "seed": seed}
        values["mixture"] = {**values.get("mixture", {}), "seed": seed}
        values["evaluation"] = {**values.get("evaluation", {}), "split": split}
        values["output_dir"] = str(output_dir)
        return Recipe.load(values)

    def dump_yaml(self) -> str:
        """The study as YAML, with the content of the recipe and absolute paths."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().resolve())


def _check_search(study: StudySchema) -> Iterator[str]:
    for name, method in study.methods.items():
        for key, values in method.grid.items():
            section, _, option = key.partition(".")
            if section not in SECTIONS or not option:
                yield (
                    f"methods.{name}.grid.{key}: expected the key of a section ({', '.join(SECTIONS)}), such as "
                    f"training.learning_rate{nearest(section, SECTIONS)}"
                )
            if not values:
                yield f"methods.{name}.grid.{key}: is empty; list the values to try"
            if len({str(value) for value in values}) < len(values):
                yield f"methods.{name}.grid.{key}: {values} has a value twice; remove it"
        trials = math.prod(map(len, method.grid.values()))
        if study.search is None and method.grid:
            yield f"methods.{name}.grid: there is no search; set search.trials (this grid has {trials})"
        elif study.search is not None and trials != study.search.trials:
            yield (
                f"methods.{name}.grid: has {trials} combinations, expected {study.search.trials} (search.trials); a "
                "fair comparison gives every method as many trials"
            )


def _check_seeds(study: StudySchema) -> Iterator[str]:
    search_seeds = [] if study.search is None else study.search.seeds
    for key, seeds in (("seeds", study.seeds), ("search.seeds", search_seeds)):
        for seed in dict.fromkeys(seeds):
            if seeds.count(seed) > 1:
                yield f"{key}: {seed} is listed {seeds.count(seed)} times; list every seed once"
            if not 0 <= seed < 2**32:
                yield f"{key}: {seed}, expected whole numbers from 0 to {2**32 - 1}"
    shared = sorted(set(study.seeds) & set(search_seeds))
    if shared:
        yield (
            f"search.seeds: {shared} are also in seeds; a run that was chosen because it is good would count as a "
            "final result, so use other seeds"
        )


def _check_names(study: StudySchema) -> Iterator[str]:
    """The methods that are named elsewhere in the file must exist."""
    for key, name in (("reference", study.reference), ("single_task", study.single_task)):
        if name is not None and name not in study.methods:
            yield f"{key}: {name!r} is not one of the methods {', '.join(study.methods)}{nearest(name, study.methods)}"


def _base_recipe(study: StudySchema) -> tuple[dict[str, Any] | None, list[str]]:
    """The values of the recipe, with absolute paths; None and the problems if it cannot be used."""
    source = study.recipe if isinstance(study.recipe, str) else dict(study.recipe)
    try:
        values, _ = Recipe.read(source)
        if isinstance(source, str):
            _make_references_absolute(values, Path(source).parent)
        # The adapter and the optimizer are those of the methods, and checked with each of them.
        values["adapter"] = {"method": "lora"}
        section: dict[str, Any] = {}
        if isinstance(values.get("optimizer"), dict):
            section, values["optimizer"] = values["optimizer"], {}
        evaluation = values.get("evaluation", {})
        if study.search is not None and isinstance(evaluation, dict):
            values["evaluation"] = {"validation_share": DEFAULT_VALIDATION_SHARE, **evaluation}
        loaded = Recipe.load(values).values()
    except RecipeError as error:
        return None, [f"recipe: {problem}" for problem in error.problems]
    loaded["optimizer"] = section
    return loaded, []


def _make_references_absolute(values: Any, folder: Path) -> None:
    """Make the Python tasks and metrics beside a recipe file usable from anywhere."""
    tasks = values.get("tasks")
    for task in tasks if isinstance(tasks, list) else []:
        for key in ("task", "metric"):
            reference = task.get(key) if isinstance(task, dict) else None
            if isinstance(reference, str) and is_reference(reference):
                task[key] = absolute_reference(reference, folder)


def _check_evaluation(study: Study) -> Iterator[str]:
    section: Mapping[str, Any] = study.base_recipe.get("evaluation", {})
    chooses = section.get("keep") == "best" or section.get("patience") is not None
    if chooses and section.get("validation_share") is None:
        yield (
            "recipe: evaluation: keep and patience would choose by the evaluation split; set "
            "evaluation.validation_share, so that evaluations during training use a validation split"
        )


def _check_forgetting(study: Study) -> Iterator[str]:
    if "forgetting" not in study.measure:
        return
    path = study.forgetting.path
    if path is None and study.base_recipe["model"]["name_or_path"] != "nano":
        yield "forgetting.path: missing; give a file with text of the kind that the base was pretrained on"
    if path is not None and not Path(path).expanduser().is_file():
        yield f"forgetting.path: no file {path!r}; give a text file, or JSONL with a field `text`"


def _check_recipes(study: Study) -> Iterator[str]:
    for name in study.methods:
        for setting in study.settings(name):
            if any(key.partition(".")[0] not in SECTIONS for key in setting):
                break  # it is reported already
            try:
                study.recipe_of(name, setting, study.seeds[0], "eval", study.path / "cells" / "new")
            except RecipeError as error:
                yield from (f"methods.{name}: {problem}" for problem in error.problems)
