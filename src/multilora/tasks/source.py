"""The source of a task's records: local files in their published formats, or the hub."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from multilora.cache import content_digest
from multilora.errors import DataError, RecordError
from multilora.example import Split
from multilora.files import files_of
from multilora.recipe.schema import HUB_PREFIX, TaskSection
from multilora.tasks.readers import READERS, FilledRecord, Record, RecordStream, check_regular, file_type, read_records

if TYPE_CHECKING:
    from datasets import Dataset

_SHARD = re.compile(r"-\d+-of-\d+$")


class Records(Protocol):
    """The records of one split."""

    def __iter__(self) -> RecordStream:
        """(where, record) pairs, in order; `where` is for errors."""

    def fingerprint(self) -> list[Any]:
        """JSON values that change when the records change."""


@dataclass(frozen=True)
class FileRecords:
    """The records of files, in sequence."""

    paths: list[Path]

    def __iter__(self) -> RecordStream:
        for path in self.paths:
            yield from read_records(path)

    def fingerprint(self) -> list[Any]:
        """See `file_fingerprint`."""
        return file_fingerprint(self.paths)


@dataclass(frozen=True)
class HubRecords:
    """The records of a hub dataset, which `datasets` memory-maps."""

    name: str
    dataset: Dataset

    def __iter__(self) -> RecordStream:
        for index, record in enumerate(self.dataset):
            yield f"{self.name} row {index}", FilledRecord(record)

    def fingerprint(self) -> list[Any]:
        """The fingerprint of the dataset's content by `datasets`."""
        return [self.dataset._fingerprint]


def file_fingerprint(paths: list[Path]) -> list[Any]:
    """Name and content hash of every file, which do not change if the file is moved, touched or downloaded again.

    Raises:
        DataError: a file cannot be read.
    """
    entries = []
    for path in paths:
        try:
            check_regular(path)
            entries.append([path.name, content_digest(path)])
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return entries


@dataclass(frozen=True)
class Layout:
    """Where the records of a dataset are: in a folder with its official files, and on the hub.

    path: the default path; if None, the recipe must set it
    files: names of the training and evaluation files in a folder, the second None if there is none; if None, files are
        named after splits, and evaluation uses `validation`, or else `test`
    hub_config, hub_splits: config and splits of a hub dataset
    """

    path: str | None = None
    files: tuple[str, str | None] | None = None
    hub_config: str | None = None
    hub_splits: tuple[str, str | None] = ("train", None)


class Source:
    """The records of a task.

    A recipe's `split` and `eval_split` override the layout: they name splits of a hub dataset, or files in a folder
    (`train` matches train.jsonl, train.csv, ... and train-00000-of-00002.parquet, ...).

    Args:
        section: the task's section of the recipe: path, eval_path, split and eval_split
        layout: used for what the section does not set

    Raises:
        DataError: neither section nor layout has a path.
    """

    def __init__(self, section: TaskSection, layout: Layout) -> None:
        path = section.path or layout.path
        if path is None:
            raise DataError(f"task {section.name!r}: path: missing; give a file, a folder or {HUB_PREFIX}owner/name")
        self.path, self.eval_path = path, section.eval_path
        self.split, self.eval_split = section.split, section.eval_split
        self.files = layout.files
        self.hub_config, self.hub_splits = layout.hub_config, layout.hub_splits

    @property
    def is_hub(self) -> bool:
        """Whether the records come from the hub."""
        return self.path.startswith(HUB_PREFIX)

    @property
    def has_eval(self) -> bool:
        """Whether the source has a separate evaluation split."""
        if self.eval_path is not None or self.eval_split is not None:
            return True
        if self.is_hub:
            return self.hub_splits[1] is not None
        if not Path(self.path).is_dir():
            return False
        return bool(self._named("validation") or self._named("test")) if self.files is None else bool(self.files[1])

    def records(self, split: Split) -> Records:
        """The records of a split; they can be read repeatedly.

        Raises:
            DataError: the file, dataset or split does not exist.
        """
        if split == "eval" and self.eval_path is not None:
            return FileRecords(files_of(self.eval_path))
        if self.is_hub:
            return self._hub(split)
        path = Path(self.path)
        if path.is_dir():
            return FileRecords(self._in_folder(path, split))
        if split == "eval":
            raise DataError(f"{path}: is the training file; name the evaluation file with eval_path")
        return FileRecords(files_of(self.path))

    def _in_folder(self, folder: Path, split: Split) -> list[Path]:
        split_name = self.split if split == "train" else self.eval_split
        if self.files is None or split_name is not None:
            names = [split_name] if split_name else ["train"] if split == "train" else ["validation", "test"]
            for name in names:
                files = self._named(name)
                if files:
                    return files
            expected = " or ".join(f"{name}.*" for name in names)
            raise DataError(
                f"{folder}: expected a file {expected} ({', '.join(READERS)}), found {_listing(folder)}; name the "
                "files with path and eval_path, or with split and eval_split"
            )
        file = self.files[0 if split == "train" else 1]
        if file is None:
            raise DataError(f"{folder}: this format has no evaluation file")
        if not (folder / file).is_file():
            raise DataError(
                f"{folder}: expected a file {file!r}, found {_listing(folder)}; name the files with path and eval_path"
            )
        return [folder / file]

    def _named(self, split: str) -> list[Path]:
        """The file of a split in the folder, or its shards; empty if there is none.

        Raises:
            DataError: several files match that are not shards of one.
        """
        files = sorted(
            item for item in Path(self.path).iterdir() if file_type(item) and _SHARD.sub("", _stem(item)) == split
        )
        if len(files) > 1 and any(_stem(item) == split for item in files):
            names = ", ".join(item.name for item in files)
            raise DataError(f"{self.path}: {names} could all be the split {split!r}; keep one, or name it as path")
        return files

    def _hub(self, split: Split) -> HubRecords:
        split_name = self.split if split == "train" else self.eval_split
        hub_split = split_name or self.hub_splits[0 if split == "train" else 1]
        if hub_split is None:
            raise DataError(f"{self.path}: this dataset has no evaluation split")
        return self.hub_records(hub_split)

    def hub_records(self, hub_split: str) -> HubRecords:
        """The records of a split of the hub dataset, by its name there.

        Raises:
            DataError: it cannot be loaded.
        """
        from datasets import load_dataset

        name, _, config = self.path.removeprefix(HUB_PREFIX).partition(":")
        try:
            dataset = load_dataset(name, config or self.hub_config, split=hub_split)
        except Exception as error:  # datasets raises many types, for network, repository and split
            raise DataError(
                f"{self.path}: cannot load split {hub_split!r} from the hub ({type(error).__name__}: {error}); "
                "check the name and the network, or download it and give a local path"
            ) from error
        return HubRecords(f"{self.path}, {hub_split}", dataset)


def _stem(path: Path) -> str:
    """The name of a data file without its type: `train` for train.jsonl.gz."""
    return path.name.partition(f"{file_type(path)}")[0]


def _listing(folder: Path) -> str:
    names = sorted(item.name for item in folder.iterdir())
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return shown or "nothing"


def field(record: Record, name: str, where: str) -> Any:
    """A field of a record.

    Raises:
        RecordError: the record does not have the field; names the fields it has.
    """
    if not isinstance(record, dict):
        raise RecordError(
            f"{where}: expected an object with a field {name!r}, got {str(record)[:80]!r}", f"no field {name!r}"
        )
    if name not in record:
        present = ", ".join(map(repr, record)) or "none"
        raise RecordError(f"{where}: no field {name!r}; the record has {present}", f"no field {name!r}")
    return record[name]


def text_field(record: Record, name: str, where: str) -> str:
    """A field that must be text or a number, as text.

    Raises:
        RecordError: the field is missing, null, a boolean, a list, an object, not finite or not valid Unicode.
    """
    value = field(record, name, where)
    if not is_text(value):
        shown = "null" if value is None else repr(value)[:80]
        raise RecordError(f"{where}: field {name!r} is {shown}, expected text", f"field {name!r} is no text")
    return str(value)


def is_text(value: Any) -> bool:
    """Whether a value is text without lone surrogates (which no file can store), or a finite number."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def list_field(record: Record, name: str, where: str) -> list[Any]:
    """A field that must be a list.

    Raises:
        RecordError: the field is missing or not a list.
    """
    value = field(record, name, where)
    if not isinstance(value, list | tuple):
        raise RecordError(
            f"{where}: field {name!r} is {type(value).__name__}, expected a list", f"field {name!r} is no list"
        )
    return list(value)
