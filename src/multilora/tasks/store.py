"""Examples on disk: built once from their source, stored under a key and read from a memory-mapped file.

    examples-<key>/examples.arrow    the columns of `Example`, and `draw`: see `multilora.tasks.holdout`
    examples-<key>/records.json      the number of records, and the draws of dropped records by reason

The folders are in the cache (`multilora.cache`), which may be deleted at any time.
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

# Part of every key, like the code of this package. Raise it when the format changes because of code elsewhere.
VERSION = 3
BATCH_ROWS = 1000
EXAMPLES_FILE, RECORDS_FILE = "examples.arrow", "records.json"


@dataclass(frozen=True)
class DroppedRecord:
    """A dropped record; `reason` is that of its `RecordError`."""

    reason: str


@dataclass(frozen=True)
class StoredExamples:
    """Examples from one source.

    dataset: rows of `Example` with a column `draw`, see `multilora.tasks.holdout`
    records: number of records in the source
    lowest, highest: the lowest and highest draw of all records
    dropped: reason -> draws of the dropped records
    """

    dataset: Dataset
    records: int
    lowest: float
    highest: float
    dropped: dict[str, list[float]]


def examples_key(*parts: Any) -> str:
    """A cache key made from `parts`, `VERSION` and the code that makes examples."""
    return cache_key(VERSION, _tasks_code(), *parts)


@functools.cache
def _tasks_code() -> str:
    """A hash of this package, so that examples are rebuilt when a built-in prompt changes."""
    return code_digest(Path(__file__).parent)


def stored_examples(
    key: str, make: Callable[[], Iterator[tuple[float, list[Example] | DroppedRecord]]]
) -> StoredExamples:
    """Read the examples under a key, after building them if they do not exist.

    Safe for concurrent processes: each builds in a temporary folder, and the first to finish is kept.

    Args:
        key: from `examples_key`
        make: yields (draw, examples or `DroppedRecord`) for each record

    Raises:
        DataError: the cache cannot be written; and whatever `make` raises.
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
                "set HF_DATASETS_CACHE to a writable folder with free space"
            ) from error
    records = json.loads((folder / RECORDS_FILE).read_text(encoding="utf-8"))
    return StoredExamples(Dataset.from_file(str(folder / EXAMPLES_FILE)), **records)


def _build(root: Path, folder: Path, make: Callable[[], Iterator[tuple[float, list[Example] | DroppedRecord]]]) -> None:
    import pyarrow as pa
    from datasets import Features, Value

    schema = Features({**example_features(), "draw": Value("float64")}).arrow_schema
    root.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=root))
    records = 0
    lowest, highest = 1.0, 0.0
    dropped: dict[str, list[float]] = {}
    try:
        with (
            pa.OSFile(str(temporary / EXAMPLES_FILE), "wb") as sink,
            pa.ipc.new_stream(sink, schema) as writer,
        ):
            rows: list[dict[str, Any]] = []
            for draw, item in make():
                records += 1
                lowest, highest = min(lowest, draw), max(highest, draw)
                if isinstance(item, DroppedRecord):
                    dropped.setdefault(item.reason, []).append(draw)
                    continue
                rows += [{**example, "draw": draw} for example in item]
                if len(rows) >= BATCH_ROWS:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
                    rows = []
            if rows:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
        facts = {"records": records, "lowest": lowest, "highest": highest, "dropped": dropped}
        (temporary / RECORDS_FILE).write_text(json.dumps(facts), encoding="utf-8")
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # else another process has stored the same examples first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
