"""Values of a recipe in Python that YAML does not have: paths, and data and models in memory.

Data is written to a file in the cache whose name says what it was and ends with a hash of its content, so that the
recipe names its data like any other; a run keeps a copy of the file, see `multilora.runs.kept_data`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from multilora.cache import cache_root
from multilora.errors import RecipeError
from multilora.files import checksum, write_text
from multilora.recipe.loaded_model import with_model_in_folder

DATA_KEYS = ("path", "eval_path")


def data_folder() -> Path:
    """The folder of data that was passed in memory."""
    return cache_root() / "records"


def with_data_in_files(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe whose data and model in memory are in files instead.

    Args:
        values: a recipe; the `path` and `eval_path` of a task may be a list of records, a `datasets.Dataset` or a
            pandas data frame; for the model, see `with_model_in_folder`

    Raises:
        RecipeError: records cannot be written as JSON, the model cannot be saved, or the cache cannot be written.
    """
    if "model" in values:
        values = {**values, "model": with_model_in_folder(values["model"])}
    tasks = values.get("tasks")
    if not isinstance(tasks, list | tuple):
        return dict(values)
    return {**values, "tasks": [_with_files(f"tasks.{index}", task) for index, task in enumerate(tasks)]}


def with_text_paths(value: Any) -> Any:
    """Return a value whose `pathlib.Path`s are text."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return {key: with_text_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_text_paths(item) for item in value]
    return value


def _with_files(where: str, task: Any) -> Any:
    if not isinstance(task, Mapping):
        return task
    return {key: _file(f"{where}.{key}", value) if key in DATA_KEYS else value for key, value in task.items()}


def _file(where: str, value: Any) -> Any:
    """The file that holds a value; other values are returned as they are."""
    try:
        if isinstance(value, list | tuple) and all(isinstance(record, Mapping) for record in value):
            return _records_file(where, value)
        module = type(value).__module__.partition(".")[0]
        if module == "datasets" and hasattr(value, "to_parquet"):
            return _dataset_file("dataset", value)
        if module == "pandas" and hasattr(value, "to_parquet"):
            from datasets import Dataset

            return _dataset_file("frame", Dataset.from_pandas(value, preserve_index=False))
    except OSError as error:
        reason = error.strerror or error
        raise RecipeError([f"{where}: the cache {data_folder()} cannot be written ({reason}); set HF_HOME"]) from None
    return value


def _records_file(where: str, records: Any) -> str:
    lines = []
    for index, record in enumerate(records):
        try:
            lines.append(json.dumps(dict(record), ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise RecipeError(
                [f"{where}: record {index} is not JSON ({error}); use text, numbers, booleans, lists and dicts"]
            ) from None
    text = "".join(line + "\n" for line in lines)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    path = data_folder() / f"list-of-{len(lines)}-records-{digest}.jsonl"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return str(path)


def _dataset_file(kind: str, dataset: Any) -> str:
    data_folder().mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".partial", dir=data_folder())
    os.close(handle)
    try:
        dataset.to_parquet(temporary)
        path = data_folder() / f"{kind}-of-{len(dataset)}-rows-{checksum(Path(temporary))[:16]}.parquet"
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            os.unlink(temporary)
    return str(path)
