"""Load recipes from YAML, a mapping or another recipe, apply overrides and report all problems together."""

from __future__ import annotations

import copy
import os
import re
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from multilora.errors import RecipeError, nearest
from multilora.recipe.checks import check_options, check_recipe, check_sections
from multilora.recipe.in_memory import with_data_in_files, with_text_paths
from multilora.recipe.schema import HUB_PREFIX, RecipeSchema
from multilora.recipe.strict_yaml import parse_yaml, size_problem
from multilora.references import absolute_reference, is_reference

MAX_BYTES = 10_000_000


class Recipe(RecipeSchema):
    """The options of a run. `Recipe.load` also checks paths and the options of other libraries.

    Relative paths are relative to the current directory. A loaded recipe has absolute paths, so that its run can be
    used from any directory.
    """

    @classmethod
    def load(
        cls,
        source: str | Path | Mapping[str, Any] | Recipe,
        overrides: Iterable[str] = (),
        *,
        check_writable: bool = False,
    ) -> Recipe:
        """Load a recipe and check its names and types, without loading a model or data or choosing a device.

        Args:
            source: path of a YAML file, its content as a mapping, or a recipe; in a mapping, paths may be
                `pathlib.Path`s, the data of a task a list of records, a `datasets.Dataset` or a data frame, and the
                model a loaded one with its tokenizer, `{"name_or_path": model, "tokenizer": tokenizer}`
            overrides: `key.subkey=value` strings; list items by index (`tasks.0.weight=2`)
            check_writable: check that `output_dir` can be written too

        Raises:
            RecipeError: with every problem: unknown or missing keys, wrong values, missing files, options that the
                adapter method or `TrainingArguments` does not have.
        """
        values, problems = cls.read(source, overrides)
        label = str(source) if isinstance(source, str | Path) else "recipe"
        try:
            recipe = cls.model_validate(values)
        except ValidationError as error:
            problems += [describe_problem(cls, item) for item in error.errors()]
            problems += check_sections(values)
            raise RecipeError(problems, label) from None
        folder = Path(source).parent if isinstance(source, str | Path) else Path()
        recipe = recipe._with_references_in(folder)
        problems += _check_output_dir(recipe.output_dir, check_writable=check_writable)
        problems += check_recipe(recipe)
        problems += check_options(recipe)
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
            values = with_text_paths(_copy(with_data_in_files(source)))
        elif isinstance(source, str | Path):
            values = read_yaml(Path(source))
        else:
            raise RecipeError([f"is {type(source).__name__}, expected a path, a mapping or a Recipe"])
        if isinstance(overrides, str):
            raise RecipeError([f"overrides is the text {overrides!r}, expected a list such as [{overrides!r}]"])
        problems = [_apply_override(values, override) for override in overrides]
        return values, [problem for problem in problems if problem]

    @classmethod
    def read_saved(cls, path: Path) -> Recipe:
        """Read the recipe saved by a run. Only keys and types are checked, because the data may be gone.

        Raises:
            RecipeError: the file cannot be read, or is damaged.
        """
        values = read_yaml(path)
        if "output_dir" not in values:  # the last key that a run writes
            raise RecipeError(["output_dir: missing, so the end of the file is lost"], str(path))
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError([describe_problem(cls, item) for item in error.errors()], str(path)) from None

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
        adapter = self.adapter.model_copy(update={"init_from": absolute(self.adapter.init_from)})
        sections = {"tasks": tasks, "model": model, "adapter": adapter}
        return self.model_copy(update={**sections, "output_dir": absolute(self.output_dir)})


def _copy(source: Mapping[str, Any]) -> dict[str, Any]:
    problem = size_problem(source)
    if problem:
        raise RecipeError([f"cannot be used: {problem}"])
    try:
        return copy.deepcopy(dict(source))
    except Exception as error:  # deepcopy calls the methods of any object in it
        raise RecipeError([f"has a value that is not plain data ({error}); use text, numbers and lists"]) from error


def read_yaml(path: Path, kind: str = "recipe", keys: str = "`model:` and `tasks:`") -> Any:
    """Read a file with a mapping.

    Args:
        path: of the file
        kind, keys: what the file is expected to be and to contain, for errors

    Raises:
        RecipeError: the file cannot be read, or holds something else.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe or a device could wait forever
            found = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
            raise RecipeError([f"cannot be read (it is {found}); give the path of a YAML {kind}"], str(path))
        if status.st_size > MAX_BYTES:
            raise RecipeError([f"has {status.st_size:,} bytes, expected a YAML {kind} (a few KB)"], str(path))
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError([f"cannot be read ({error}); give the path of a YAML {kind}"], str(path)) from None
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise RecipeError([f"is not YAML: {error}"], str(path)) from None
    if not isinstance(values, dict):
        shown = "empty" if values is None else type(values).__name__
        raise RecipeError([f"is {shown}, expected keys such as {keys}"], str(path))
    return values


def _check_output_dir(value: str, *, check_writable: bool) -> list[str]:
    """Check that a folder could be created at this path; returns the problem, if any."""
    try:
        path = Path(value).expanduser().absolute()
        for part in (path, *path.parents):
            with suppress(FileNotFoundError, NotADirectoryError):
                if not stat.S_ISDIR(part.stat().st_mode):
                    return [f"output_dir: {value!r}: {str(part)!r} is a file; choose a new folder"]
                if check_writable and not os.access(part, os.W_OK | os.X_OK):
                    return [f"output_dir: {value!r}: {str(part)!r} cannot be written; set output_dir to one that can"]
                return []
    except OSError as error:
        return [f"output_dir: {value!r} cannot be a folder ({error.strerror or error}); choose another path"]
    return []


def _apply_override(values: Any, override: str) -> str | None:
    """Apply one `a.b=v` to `values` in place; returns the problem, if any."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        return f"--set {override}: expected key=value, such as training.max_steps=100"
    try:
        value = parse_yaml(text)
    except ValueError:
        value = text
    parts = key.split(".")
    node = values
    for depth, part in enumerate(parts):
        is_last = depth == len(parts) - 1
        path = ".".join(parts[: depth + 1])
        if isinstance(node, list):
            if not re.fullmatch("[0-9]{1,6}", part) or int(part) >= len(node):
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


def describe_problem(root: type[BaseModel], error: Any) -> str:
    """Describe a pydantic error of a model in one line."""
    location = list(error["loc"])
    path = ".".join(str(part) for part in location)
    kind = error["type"]
    if kind == "extra_forbidden":
        known = _fields_at(root, location[:-1])
        return f"{path}: unknown key{nearest(str(location[-1]), known)}; known keys are {', '.join(sorted(known))}"
    if kind == "missing":
        return f"{path}: missing; it has no default"
    if error["input"] is None:
        return f"{path}: is empty (null); fill it in, or leave it out if it has a default"
    shown = repr(error["input"])
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    message = str(error["ctx"]["error"]) if kind == "value_error" else error["msg"].lower()
    return f"{path}: {message}, got {shown}"


def _fields_at(root: type[BaseModel], location: list[Any]) -> list[str]:
    """The keys of the section at a location; items of lists and values of mappings are sections too."""
    model: type[BaseModel] = root
    for part in location:
        if part not in model.model_fields:  # the index of an item, or the key of a mapping
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next(item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel))
    return list(model.model_fields)
