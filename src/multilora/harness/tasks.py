"""lm-eval's own definitions of the built-in tasks, on local data.

Only `dataset_path` of a definition is replaced, by a folder with the records in the layout and columns that the
dataset has on the hub. Prompts, few-shot sampling, normalisation, filters and metrics stay lm-eval's. The folder is in
the cache (`multilora.cache`).
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

import multilora
from multilora.cache import cache_key, cache_root
from multilora.errors import DataError, InputError, RecordError
from multilora.harness.hub_format import CONVERT, Convert, Row, mmlu
from multilora.harness.require import own_task_errors
from multilora.recipe.built_in_tasks import built_in
from multilora.recipe.schema import HUB_PREFIX, TaskSection
from multilora.tasks.make import make_task
from multilora.tasks.mmlu import DEV, TEST, SubjectFiles
from multilora.tasks.record_task import RecordTask
from multilora.tasks.source import Records

logger = logging.getLogger(__name__)

# Part of every key of the cache; raise it when what is written changes.
VERSION = 1
SHOWN = 20
# Start of the names of the folders, which end with a hash of the content.
LOCAL = "lm-eval-"


@dataclass(frozen=True)
class Definition:
    """name: of the task or group in lm-eval; config: of its dataset; split: the one that is evaluated."""

    name: str
    config: str
    split: str


_DEFINITIONS: dict[str, Definition] = {
    "gsm8k": Definition("gsm8k", "main", "test"),
    "arc/easy": Definition("arc_easy", "ARC-Easy", "test"),
    "arc/challenge": Definition("arc_challenge", "ARC-Challenge", "test"),
    "openbookqa": Definition("openbookqa", "main", "test"),
    "superglue/boolq": Definition("boolq", "boolq", "validation"),
    "superglue/cb": Definition("cb", "cb", "validation"),
    "superglue/copa": Definition("copa", "copa", "validation"),
    "superglue/multirc": Definition("multirc", "multirc", "validation"),
    "superglue/record": Definition("record", "record", "validation"),
    "superglue/rte": Definition("sglue_rte", "rte", "validation"),
    "superglue/wic": Definition("wic", "wic", "validation"),
    "superglue/wsc": Definition("wsc", "wsc.fixed", "validation"),
}


def harness_name(name: str) -> str | None:
    """The name in lm-eval of a built-in task, or None if lm-eval does not have it."""
    if name in _DEFINITIONS:
        return _DEFINITIONS[name].name
    family, _, subject = name.partition("/")
    if family == "mmlu" and built_in(name):
        return f"mmlu_{subject}" if subject else "mmlu"
    return None


def reads_data_of(name: str, built_in_name: str, manager: Any) -> bool:
    """Return whether a task of lm-eval reads the data of a built-in task: `gsm8k_cot` that of `gsm8k`.

    Args:
        name: in lm-eval
        built_in_name: of a built-in task
        manager: lm-eval's `TaskManager`
    """
    default = harness_name(built_in_name)
    if default is None or name == default:
        return default is not None
    if default == "mmlu":
        default = "mmlu_astronomy"  # any subject: they differ in the config of the dataset
        keys = ["dataset_path"]
    else:
        keys = ["dataset_path", "dataset_name"]
    wanted, found = (
        [((manager.task_index[item].cfg or {}) if item in manager.task_index else {}).get(key) for key in keys]
        for item in (default, name)
    )
    return None not in wanted and wanted == found


def check_data(name: str, section: TaskSection, manager: Any) -> None:
    """Check that a task of lm-eval reads the data of a recipe's task.

    Raises:
        InputError: it does not, or it does not exist; names the tasks that do.
    """
    if not reads_data_of(name, section.name, manager):
        same = [item for item in manager.all_tasks if reads_data_of(item, section.name, manager)]
        more = f", ... ({len(same)} in all)" if len(same) > SHOWN else ""
        raise InputError(
            f"task {section.name!r}: lm-eval has no task {name!r} on this data; expected one of "
            f"{', '.join(same[:SHOWN])}{more}"
        )


def local_task(section: TaskSection, manager: Any, name: str | None = None) -> Any:
    """Return lm-eval's task, or group for `mmlu`, on the local data of a recipe's task.

    Args:
        section: of a built-in task that lm-eval has too, with a local path
        manager: lm-eval's `TaskManager`
        name: of the task in lm-eval; by default the section's `harness_task`, or else that of the built-in task

    Raises:
        DataError: lm-eval has no such task, or the data cannot be used.
        InputError: lm-eval's task reads other data, or its definition imports a module that is not there.
    """
    default = harness_name(section.name)
    if default is None or section.path is None or section.path.startswith(HUB_PREFIX):
        raise DataError(
            f"task {section.name!r}: expected a built-in task with a local path ({', '.join(_DEFINITIONS)}, mmlu, "
            "mmlu/<subject>); give any other task by its name in lm-eval"
        )
    name = name or section.harness_task or default
    check_data(name, section, manager)
    folder = _dataset_folder(section)
    # A member of a group is lm-eval's form of "this definition, with these changes". The group needs an entry in the
    # index: given directly, its own keys would count as changes of the members too.
    wrapper = f"local {folder.name}"
    member = {"group" if name == "mmlu" else "task": name, "dataset_path": str(folder)}
    config = {"group": wrapper, "task": [member]}
    index = manager.task_index
    index[wrapper] = replace(index["mmlu"], name=wrapper, yaml_path=None, cfg=config, tags=set())
    try:
        with own_task_errors():
            (item,) = manager.load([wrapper])["groups"][wrapper]
    except ValueError as error:  # from `datasets`, if a subject is missing
        raise DataError(
            f"task {section.name!r}: {section.path}: not all the data of lm-eval's {name!r} is there "
            f"({' '.join(str(error).split())[:300]}); add it, or evaluate single subjects of MMLU as mmlu/<subject>"
        ) from error
    finally:
        del index[wrapper]
    return item


def _dataset_folder(section: TaskSection) -> Path:
    """The folder with the task's data in the hub's layout, written unless the cache has it."""
    configs = _configs(section)
    contents = [
        (config, split, records.fingerprint())
        for config, splits in configs.items()
        for split, records in splits.items()
    ]
    key = cache_key(VERSION, multilora.__version__, section.name, section.on_error, contents)
    folder = cache_root() / f"{LOCAL}{key}"
    if folder.is_dir():
        return folder
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        _write(temporary, section, configs)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # else another process has written the same data first
                raise
    except OSError as error:
        raise DataError(
            f"{error.filename or folder.parent}: the cache cannot be written ({error.strerror or error}); set "
            "HF_DATASETS_CACHE to a writable folder with free space"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _configs(section: TaskSection) -> dict[str, dict[str, Records]]:
    """Config of the dataset -> split -> records; MMLU has a config per subject."""
    task = make_task(section)
    if not isinstance(task, RecordTask):
        raise DataError(f"task {section.name!r}: is a {type(task).__name__}, expected the built-in task")
    if not task.source.has_eval:
        raise DataError(
            f"task {section.name!r}: {section.path}: has no evaluation file, and lm-eval has no held-out part of a "
            "training file; name it with eval_path"
        )
    train, evaluation = task.source.records("train"), task.source.records("eval")
    if isinstance(train, SubjectFiles) and isinstance(evaluation, SubjectFiles):
        shots = {_subject(path, DEV): path for path in train.paths if path.parent.name == DEV}
        tests = {_subject(path, TEST): path for path in evaluation.paths}
        return {
            subject: {DEV: SubjectFiles([shots[subject]]), TEST: SubjectFiles([path])}
            for subject, path in tests.items()
            if subject in shots
        }
    definition = _DEFINITIONS[section.name]
    return {definition.config: {"train": train, definition.split: evaluation}}


def _subject(path: Path, split: str) -> str:
    return path.stem.removesuffix(f"_{split}")


def _write(folder: Path, section: TaskSection, configs: dict[str, dict[str, Records]]) -> None:
    """Write a parquet file per split, and the README.md from which `datasets` reads configs and splits."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    convert = CONVERT.get(section.name, mmlu)
    metadata = []
    for config, splits in configs.items():
        (folder / config).mkdir()
        data_files = []
        for split, records in splits.items():
            rows = list(_rows(section, records, convert))
            if not rows:
                raise DataError(f"task {section.name!r}: no usable record for the split {split!r} in {section.path}")
            file = f"{config}/{split}.parquet"
            parquet.write_table(pa.Table.from_pylist(rows), folder / file)
            data_files.append({"split": split, "path": file})
        metadata.append({"config_name": config, "data_files": data_files})
    header = yaml.safe_dump({"configs": metadata}, sort_keys=False)
    (folder / "README.md").write_text(f"---\n{header}---\n", encoding="utf-8")


def _rows(section: TaskSection, records: Records, convert: Convert) -> Iterator[Row]:
    dropped: Counter[str] = Counter()
    for where, record in records:
        try:
            yield from convert(record, where)
        except RecordError as error:
            if section.on_error != "drop":
                raise
            dropped[error.reason] += 1
    if dropped:
        counts = ", ".join(f"{count:,} ({reason})" for reason, count in dropped.items())
        logger.warning("task %r: dropped %s of its records for lm-eval", section.name, counts)
