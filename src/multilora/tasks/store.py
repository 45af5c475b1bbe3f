"""Examples on disk: built once from their source into a memory-mapped file, and found again by a key.

    examples-<key>/examples.arrow    the columns of `Example`, and `record`: the number of its record
    examples-<key>/records.json      how many records there were, and which were left out for what reason

They lie in the cache (`multilora.cache`), which may be deleted at any time.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multilora.cache import cache_key, cache_root, code_digest
from multilora.errors import DataError
from multilora.example import Example, example_features

if TYPE_CHECKING:
    from datasets import Dataset

# Part of every key, with the code of this package: raise it when what is stored changes for another reason.
VERSION = 2
BATCH_ROWS = 1000
EXAMPLES_FILE, RECORDS_FILE = "examples.arrow", "records.json"


@dataclass(frozen=True)
class UnusedRecord:
    """A record that was left out, and the short label of why."""

    reason: str


@dataclass(frozen=True)
class StoredExamples:
    """Examples from one source.

    dataset: rows of `Example` with a column `record`; records: how many the source has; unused: reason -> numbers of
    the records left out.
    """

    dataset: Dataset
    records: int
    unused: dict[str, list[int]]


def examples_key(*parts: Any) -> str:
    """A name for examples: of plain values, of `VERSION` and of the code that makes examples."""
    return cache_key(VERSION, _own_code(), *parts)


@functools.cache
def _own_code() -> str:
    """A changed prompt must not be answered with examples of the old one."""
    return code_digest(Path(__file__).parent)


def stored_examples(key: str, make: Callable[[], Iterator[tuple[int, Example | UnusedRecord]]]) -> StoredExamples:
    """The examples under a key, built if they are not there yet.

    Safe among processes: each builds in a folder of its own, and the first one's is kept.

    Args:
        key: from `examples_key`
        make: yields (number of the record, example or why there is none), by rising number

    Raises:
        DataError: the cache cannot be written to; and whatever `make` raises.
    """
    from datasets import Dataset

    root = cache_root()
    folder = root / f"examples-{key}"
    if not folder.is_dir():
        try:
            _build(root, folder, make)
        except OSError as error:
            raise DataError(
                f"{error.filename or root}: the cache cannot be written ({error.strerror or error}); "
                "set HF_DATASETS_CACHE to a folder with room"
            ) from error
    records = json.loads((folder / RECORDS_FILE).read_text(encoding="utf-8"))
    return StoredExamples(Dataset.from_file(str(folder / EXAMPLES_FILE)), records["records"], records["unused"])


def _build(root: Path, folder: Path, make: Callable[[], Iterator[tuple[int, Example | UnusedRecord]]]) -> None:
    import pyarrow as pa
    from datasets import Features, Value

    schema = Features({**example_features(), "record": Value("int64")}).arrow_schema
    root.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=root))
    records = 0
    unused: dict[str, list[int]] = {}
    try:
        with (
            pa.OSFile(str(temporary / EXAMPLES_FILE), "wb") as sink,
            pa.ipc.new_stream(sink, schema) as writer,
        ):
            rows: list[dict[str, Any]] = []
            for number, item in make():
                records = number + 1
                if isinstance(item, UnusedRecord):
                    unused.setdefault(item.reason, []).append(number)
                    continue
                rows.append({**item, "record": number})
                if len(rows) == BATCH_ROWS:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
                    rows = []
            if rows:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
        (temporary / RECORDS_FILE).write_text(json.dumps({"records": records, "unused": unused}), encoding="utf-8")
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same examples
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
