"""Where a task's records come from: local JSON files in their public formats, or the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multilora.errors import DataError
from multilora.recipe import HUB_PREFIX
from multilora.tasks.base import Split

Record = dict[str, Any]


def read_json(path: Path) -> Iterator[tuple[str, Record]]:
    """(where, record) for every object of a .jsonl file, or of a .json file that holds one list.

    Raises:
        DataError: unreadable, not UTF-8, broken JSON, or not an object; names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if path.suffix == ".json":
        try:
            records = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {error.lineno}: broken JSON ({error.msg})") from None
        if not isinstance(records, list):
            raise DataError(f"{path}: holds {type(records).__name__}, expected a list of objects")
        numbered: Iterator[tuple[str, Any]] = (
            (f"{path}, item {number}", record) for number, record in enumerate(records, 1)
        )
    else:
        numbered = _lines(path, text)
    for where, record in numbered:
        if not isinstance(record, dict):
            raise DataError(f"{where}: holds {type(record).__name__}, expected an object with named fields")
        yield where, record


def _lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    # Not str.splitlines: it also breaks at U+2028 and the like, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: broken JSON ({error.msg}, column {error.colno})") from None


class Source:
    """The records of a task.

    Args:
        path: folder, file, or `hub:owner/name`
        eval_path: file with the evaluation records, where `path` is a file
        files: names of the training and evaluation files in a folder; the second None if the format has no such split
        hub_config, hub_splits: the same for a hub dataset
    """

    def __init__(
        self,
        path: str,
        eval_path: str | None = None,
        *,
        files: tuple[str, str | None] = ("train.jsonl", None),
        hub_config: str | None = None,
        hub_splits: tuple[str, str | None] = ("train", None),
    ) -> None:
        self.path, self.eval_path = path, eval_path
        self.files = files
        self.hub_config, self.hub_splits = hub_config, hub_splits

    @property
    def is_hub(self) -> bool:
        """Whether the records come from the hub."""
        return self.path.startswith(HUB_PREFIX)

    @property
    def has_eval(self) -> bool:
        """Whether evaluation records exist apart from the training ones."""
        if self.eval_path is not None:
            return True
        if self.is_hub:
            return self.hub_splits[1] is not None
        return Path(self.path).is_dir() and self.files[1] is not None

    def records(self, split: Split) -> Iterator[tuple[str, Record]]:
        """(where, record) of a split; `where` is for messages.

        Raises:
            DataError: no such file, dataset or split.
        """
        if split == "eval" and self.eval_path is not None:
            return read_json(Path(self.eval_path))
        if self.is_hub:
            return self._hub(split)
        path = Path(self.path)
        if path.is_dir():
            name = self.files[0 if split == "train" else 1]
            if name is None:
                raise DataError(f"{path}: this format has no evaluation file")
            if not (path / name).is_file():
                present = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
                raise DataError(
                    f"{path}: expected a file {name!r}, found {present}; name the files with path and eval_path"
                )
            return read_json(path / name)
        if split == "eval":
            raise DataError(f"{path}: is the training file; name the evaluation file with eval_path")
        return read_json(path)

    def _hub(self, split: Split) -> Iterator[tuple[str, Record]]:
        from datasets import load_dataset

        name = self.path.removeprefix(HUB_PREFIX)
        hub_split = self.hub_splits[0 if split == "train" else 1]
        if hub_split is None:
            raise DataError(f"{self.path}: this dataset has no evaluation split")
        try:
            dataset = load_dataset(name, self.hub_config, split=hub_split)
        except Exception as error:  # datasets raises many kinds: network, missing repository, missing split
            raise DataError(
                f"{self.path}: cannot load split {hub_split!r} from the hub ({type(error).__name__}: {error}); "
                "check the name and the network, or download it and give a local path"
            ) from error
        for number, record in enumerate(dataset):
            yield f"{self.path}, {hub_split} row {number}", dict(record)


def field(record: Record, name: str, where: str) -> Any:
    """A field of a record.

    Raises:
        DataError: the record has no such field; names those it has.
    """
    if name not in record:
        raise DataError(f"{where}: no field {name!r}; the record has {', '.join(map(repr, record)) or 'none'}")
    return record[name]
