"""Readers of file formats. Each streams (where, record) pairs; only .json files are read into memory as a whole."""

from __future__ import annotations

import csv
import gzip
import json
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from multilora.errors import DataError

Record = dict[str, Any]
RecordStream = Iterator[tuple[str, Record]]

PARQUET_ROWS = 1024
COMPRESSED = ".gz"
_NAMES = {",": "comma", "\t": "tab"}


class FilledRecord(Record):
    """A record of a columnar source, in which missing nested keys appear with the value None."""


def read_records(path: Path) -> RecordStream:
    """(where, record) for every record of a file; `where` is the file and line, for errors.

    The suffix selects the format. .jsonl and .ndjson: an object per line; .json: a list of objects; .csv and .tsv: a
    header row, and all values are strings; .parquet. All but parquet may be compressed, as in .jsonl.gz.

    Raises:
        DataError: unknown suffix, or the file cannot be read, is not UTF-8, is broken or has no records in it; names
            file and line.
    """
    kind = file_type(path)
    if kind is None:
        shown = "".join(path.suffixes[-2:]) if path.suffix == COMPRESSED else path.suffix
        raise DataError(
            f"{path}: unknown file type {shown!r}; expected one of {', '.join(READERS)}, all but parquet also with "
            f"{COMPRESSED} behind it"
        )
    try:
        check_regular(path)
        yield from READERS[kind](path)
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: is damaged ({error}); compress it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def file_type(path: Path) -> str | None:
    """The key of `READERS` for a file, without .gz; None for others."""
    compressed = path.suffix == COMPRESSED
    kind = path.with_suffix("").suffix if compressed else path.suffix
    return kind if kind in READERS and not (compressed and kind == ".parquet") else None


def check_regular(path: Path) -> None:
    """Check that a path is a file; opening a pipe or a device could wait forever.

    Raises:
        DataError: it is something else.
        OSError: it does not exist, or cannot be read.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise DataError(f"{path}: is {kind}, expected a file; name a file, or save the data to one")


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line with its end) of a UTF-8 file, without a byte order mark.

    Lines end at line feeds only: JSON strings may contain other characters that end a line for Python, such as U+2028.
    """
    start = 0
    with gzip.open(path) if path.suffix == COMPRESSED else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: byte {start + error.start} is not UTF-8 (line {number}); convert the file to UTF-8"
                ) from None
            start += len(line)
            yield number, text


def _read_jsonl(path: Path) -> RecordStream:
    for number, line in _text_lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: broken JSON ({error.msg}, column {error.colno})") from None
        except ValueError as error:  # a number with thousands of digits
            raise DataError(f"{where}: broken JSON ({error})") from None
        except RecursionError:
            raise DataError(f"{where}: JSON nested too deeply to be a record") from None
        yield where, _object(where, record)


def _read_json(path: Path) -> RecordStream:
    text = "".join(line for _, line in _text_lines(path))
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; name a file with one object per line .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}, line {error.lineno}: broken JSON ({error.msg}){hint}") from None
    except ValueError as error:  # a number with thousands of digits
        raise DataError(f"{path}: broken JSON ({error})") from None
    except RecursionError:
        raise DataError(f"{path}: JSON nested too deeply to be records") from None
    if not isinstance(records, list):
        raise DataError(f"{path}: is {type(records).__name__}, expected a list of objects")
    for number, record in enumerate(records, 1):
        where = f"{path}, item {number}"
        yield where, _object(where, record)


def _object(where: str, record: Any) -> Record:
    if not isinstance(record, dict):
        raise DataError(f"{where}: is {type(record).__name__}, expected an object with named fields")
    return record


def read_csv_rows(path: Path, delimiter: str = ",") -> Iterator[tuple[str, list[str]]]:
    """(where, cells) for every row of a CSV file that is not blank; quoted cells may contain line breaks.

    Args:
        path: of the file
        delimiter: between cells

    Raises:
        DataError: the file cannot be read, is not UTF-8 or is wrongly quoted; names file and line.
    """
    try:
        rows = csv.reader((line for _, line in _text_lines(path)), strict=True, delimiter=delimiter)
        line = 1
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(
                    f"{path}, line {line}: broken CSV ({error}); quote every cell that has a {_NAMES[delimiter]}, a "
                    "quote or a line break, or convert the file to .jsonl"
                ) from None
            if row:
                yield f"{path}, line {line}", row
            line = rows.line_num + 1
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _read_tsv(path: Path) -> RecordStream:
    return _read_csv(path, "\t")


def _read_csv(path: Path, delimiter: str = ",") -> RecordStream:
    rows = read_csv_rows(path, delimiter)
    _, header = next(rows, ("", []))
    _check_columns(f"{path}, line 1", header)
    for where, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{where}: {len(row)} columns, expected the {len(header)} of the header "
                f"({', '.join(map(repr, header))}); fix the row, or quote cells that have a {_NAMES[delimiter]}"
            )
        yield where, dict(zip(header, row, strict=True))


def _read_parquet(path: Path) -> RecordStream:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(str(path), file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for record in batch.to_pylist():
                    yield f"{path}, row {number}", FilledRecord(record)
                    number += 1
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # text not in UTF-8, dates out of range
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: cannot be read as parquet at row {number} ({reason}); write the file again") from None


def _check_columns(where: str, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        shown = ", ".join(map(repr, repeated))
        raise DataError(f"{where}: the header has {shown} twice; give each column another name")


READERS: dict[str, Callable[[Path], RecordStream]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".tsv": _read_tsv,
}
