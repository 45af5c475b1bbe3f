"""Examples on disk: built once from their source into a memory-mapped file, and found again by a fingerprint.

They lie under `multilora/` in `datasets`' cache folder (HF_DATASETS_CACHE), which may be cleared at any time:

    examples-<fingerprint>/examples.arrow    the columns of `Example` and `record`: the number of its record
    examples-<fingerprint>/records.json      how many records there were, and which were left out for what reason
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multilora.errors import DataError
from multilora.tasks.base import Example, example_features

if TYPE_CHECKING:
    from datasets import Dataset

# Part of every fingerprint, with the text of this package: raise it when what is stored changes elsewhere.
VERSION = 1
BATCH_ROWS = 1000
EXAMPLES_FILE, RECORDS_FILE = "examples.arrow", "records.json"


@dataclass(frozen=True)
class Unused:
    """A record that was left out, and the short label of why."""

    reason: str


@dataclass(frozen=True)
class Stored:
    """Examples from one source.

    dataset: rows of `Example` with a column `record`; records: how many the source has; unused: reason -> numbers of
    the records left out.
    """

    dataset: Dataset
    records: int
    unused: dict[str, list[int]]


def fingerprint(parts: Any) -> str:
    """A name for examples: a hash of plain values, of `VERSION` and of the code that makes examples."""
    text = json.dumps([VERSION, _code_digest(), parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@functools.cache
def _code_digest() -> str:
    """A hash of this package's files: a changed prompt must not be answered with examples of the old one."""
    files = sorted(resources.files("multilora.tasks").iterdir(), key=lambda item: item.name)
    digest = hashlib.sha256()
    for file in files:
        if file.name.endswith(".py"):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def stored(key: str, make: Callable[[], Iterator[tuple[int, Example | Unused]]]) -> Stored:
    """The examples under a key, built if they are not there yet.

    Safe among processes: each builds in a folder of its own, and the first one's is kept.

    Args:
        key: from `fingerprint`
        make: gives (number of the record, example or why there is none), by rising number

    Raises:
        DataError: the cache folder cannot be written to; and whatever `make` raises.
    """
    from datasets import Dataset, config

    root = Path(config.HF_DATASETS_CACHE) / "multilora"
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
    return Stored(Dataset.from_file(str(folder / EXAMPLES_FILE)), records["records"], records["unused"])


def _build(root: Path, folder: Path, make: Callable[[], Iterator[tuple[int, Example | Unused]]]) -> None:
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
                if isinstance(item, Unused):
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
