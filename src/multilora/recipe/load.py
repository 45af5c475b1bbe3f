"""Load recipes from YAML, a mapping or another recipe, apply overrides and report all problems together."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from multilora.errors import RecipeError, nearest
from multilora.recipe.checks import check_recipe, check_sections
from multilora.recipe.schema import HUB_PREFIX, RecipeSchema
from multilora.references import absolute_reference, is_reference


class Recipe(RecipeSchema):
    """The options of a run. `Recipe.load` also checks paths and the options of other libraries.

    Relative paths are relative to the current directory. A loaded recipe has absolute paths, so that its run can be
    used from any directory.
    """

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | Recipe, overrides: Iterable[str] = ()) -> Recipe:
        """Load a recipe and check its names and types, without loading a model or data or choosing a device.

        Args:
            source: path of a YAML file, its content as a mapping, or a recipe
            overrides: `key.subkey=value` strings; list items by index (`tasks.0.weight=2`)

        Raises:
            RecipeError: with every problem: unknown or missing keys, wrong values, missing files, options that the
                adapter method or `TrainingArguments` does not have.
        """
        values, problems = cls.read(source, overrides)
        label = str(source) if isinstance(source, str | Path) else "recipe"
        try:
            recipe = cls.model_validate(values)
        except ValidationError as error:
            problems += [_describe(cls, item) for item in error.errors()]
            problems += check_sections(values)
            raise RecipeError(problems, label) from None
        folder = Path(source).parent if isinstance(source, str | Path) else Path()
        recipe = recipe._with_references_in(folder)
        problems += check_recipe(recipe)
        if problems:
            raise RecipeError(problems, label)
        return recipe._with_absolute_paths()

    @classmethod
    def read(
        cls, source: str | Path | Mapping[str, Any] | Recipe, overrides: Iterable[str] = ()
    ) -> tuple[Any, list[str]]:
        """Read a recipe unchecked; returns (its values with overrides applied, problems with the overrides).

        Raises:
            RecipeError: the file cannot be read.
        """
        if isinstance(source, Recipe):
            values: Any = source.values()
        elif isinstance(source, Mapping):
            values = copy.deepcopy(dict(source))
        else:
            values = _read_yaml(Path(source))
        problems = [_apply_override(values, override) for override in overrides]
        return values, [problem for problem in problems if problem]

    @classmethod
    def read_saved(cls, path: Path) -> Recipe:
        """Read the recipe saved by a run. Only keys and types are checked, because the data may be gone.

        Raises:
            RecipeError: the file cannot be read, or is damaged.
        """
        try:
            return cls.model_validate(_read_yaml(path))
        except ValidationError as error:
            raise RecipeError([_describe(cls, item) for item in error.errors()], str(path)) from None

    def _with_references_in(self, folder: Path) -> Recipe:
        """The recipe with absolute references to the Python tasks and metrics that are in `folder`."""

        def reference(value: str | None) -> str | None:
            return absolute_reference(value, folder) if value is not None and is_reference(value) else value

        tasks = [
            section.model_copy(update={"task": reference(section.task), "metric": reference(section.metric)})
            for section in self.tasks
        ]
        return self.model_copy(update={"tasks": tasks})

    def _with_absolute_paths(self) -> Recipe:
        def absolute(value: str | None) -> str | None:
            if value is None or value.startswith(HUB_PREFIX):
                return value
            return str(Path(value).expanduser().resolve())

        tasks = [
            section.model_copy(update={"path": absolute(section.path), "eval_path": absolute(section.eval_path)})
            for section in self.tasks
        ]
        model = self.model
        if model.name_or_path != "nano" and Path(model.name_or_path).expanduser().is_dir():
            model = model.model_copy(update={"name_or_path": absolute(model.name_or_path)})
        return self.model_copy(update={"tasks": tasks, "model": model, "output_dir": absolute(self.output_dir)})


def _read_yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"cannot be read ({error}); give the path of a YAML recipe"], str(path)) from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError([f"is not YAML: {' '.join(str(error).split())}"], str(path)) from None
    if not isinstance(values, dict):
        raise RecipeError([f"is {type(values).__name__}, expected keys such as `model:` and `tasks:`"], str(path))
    return values


def _apply_override(values: Any, override: str) -> str | None:
    """Apply one `a.b=v` to `values` in place; returns the problem, if any."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        return f"--set {override}: expected key=value, such as training.max_steps=100"
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    parts = key.split(".")
    node = values
    for depth, part in enumerate(parts):
        is_last = depth == len(parts) - 1
        path = ".".join(parts[: depth + 1])
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                return f"--set {override}: {path} is not one of the {len(node)} items (0 to {len(node) - 1})"
            if is_last:
                node[int(part)] = value
            else:
                node = node[int(part)]
        elif isinstance(node, dict):
            if is_last:
                node[part] = value
            else:
                # `model: nano` can be combined with --set model.dtype=float32.
                if part == "model" and isinstance(node.get(part), str):
                    node[part] = {"name_or_path": node[part]}
                node = node.setdefault(part, {})
        else:
            return f"--set {override}: {path} would be a key of {node!r}, which has no keys"
    return None


def _describe(root: type[BaseModel], error: Any) -> str:
    """Describe a pydantic error in one line."""
    location = list(error["loc"])
    path = ".".join(str(part) for part in location)
    kind = error["type"]
    if kind == "extra_forbidden":
        known = _fields_at(root, location[:-1])
        return f"{path}: unknown key{nearest(str(location[-1]), known)}; known keys are {', '.join(sorted(known))}"
    if kind == "missing":
        return f"{path}: missing; it has no default"
    shown = repr(error["input"])
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return f"{path}: {error['msg'].lower()}, got {shown}"


def _fields_at(root: type[BaseModel], location: list[Any]) -> list[str]:
    model: type[BaseModel] = root
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel))
    return list(model.model_fields)
