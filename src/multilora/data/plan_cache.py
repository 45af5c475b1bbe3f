"""What `multilora plan` showed for a recipe, kept until the recipe, its data, its model or a package changes.

Imports neither torch nor transformers: showing a plan again takes no longer than reading it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from multilora.errors import RecipeError
from multilora.files import write_json
from multilora.recipe import HUB_PREFIX, Recipe

PACKAGES = ("multilora", "torch", "transformers", "tokenizers", "peft", "datasets")


def cache_key(
    source: str | Path | Mapping[str, Any] | Recipe, overrides: Iterable[str], *, measured: bool
) -> str | None:
    """A name for all that a shown plan depends on; None where that cannot be told from here (the hub, a faulty recipe).

    `measured`: the cost of a step is shown too.
    """
    try:
        values, problems = Recipe.read(source, overrides)
        recipe = Recipe.model_validate(values)
    except (RecipeError, ValidationError):
        return None
    if problems:
        return None
    paths = [recipe.model.name_or_path]
    for task in recipe.tasks:
        paths += [path for path in (task.path, task.eval_path) if path is not None]
        if task.path is None and not task.name.startswith("nano/"):
            return None  # the task's own dataset on the hub
    if any(path.startswith(HUB_PREFIX) for path in paths):
        return None
    if paths[0] == "nano":
        paths[0] = str(Path(__file__).parents[1] / "nano")
    if not all(Path(path).expanduser().exists() for path in paths):
        return None
    code = [str(path) for path in sorted(Path(__file__).parents[1].rglob("*.py"))]
    state = [entry for path in (*paths, *code) for entry in _state(Path(path).expanduser())]
    versions = [version(name) for name in PACKAGES]
    described = json.dumps([recipe.model_dump(mode="json"), os.getcwd(), versions, state, measured])
    return hashlib.sha256(described.encode()).hexdigest()[:32]


def _state(path: Path) -> Iterator[tuple[str, int, int]]:
    """(path, size, time of change) of a file, or of every file under a folder."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    for file in files:
        stat = file.stat()
        yield str(file.resolve()), stat.st_size, stat.st_mtime_ns


def _file(key: str) -> Path:
    root = os.environ.get("HF_DATASETS_CACHE")
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return (Path(root) if root else home / "datasets") / "multilora" / "plans" / f"{key}.json"


def read(key: str | None) -> dict[str, Any] | None:
    """What was kept under a key, if anything."""
    if key is None:
        return None
    try:
        found: dict[str, Any] = json.loads(_file(key).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return found


def write(key: str | None, shown: dict[str, Any]) -> None:
    """Keep it."""
    if key is not None:
        _file(key).parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(key), shown)
