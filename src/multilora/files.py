"""Atomic writes of files and folders."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file that replaces `path` if the block succeeds and is deleted if it fails."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically."""
    with atomic_file(target) as temporary:
        shutil.copyfile(source, temporary)


def files_of(path: str) -> list[Path]:
    """The file at a path, or all files that match it if it has a wildcard (`data/*.jsonl`, `**` for folders), sorted.

    A file whose name has such a character is found by its name. Without a match, the path itself is returned.
    """
    if os.path.lexists(path) or not glob.has_magic(path):
        return [Path(path)]
    matches = sorted(Path(match) for match in glob.glob(path, recursive=True) if not os.path.isdir(match))
    return matches or [Path(path)]


def checksum(path: Path) -> str:
    """The SHA-256 of a file's content.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file atomically."""
    write_text(path, to_json(value) + "\n")


def to_json(value: Any, indent: int | None = 2) -> str:
    """Strict JSON: NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def append_json_line(path: Path, value: Any) -> None:
    """Append a line to a JSON Lines file; if the disk is full, nothing of it is left."""
    line = (to_json(value, indent=None) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            while line:  # a nearly full disk takes part of it, and raises for the rest
                line = line[file.write(line) :]
        except BaseException:
            with suppress(OSError):
                file.truncate(size)
            raise


def drop_later_lines(path: Path, step: int) -> None:
    """Drop the lines of a JSON Lines log after `step`; a resumed run takes those steps again.

    Incomplete lines and transformers' final line with the run time are dropped too.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().split(b"\n"):  # an incomplete line may end in the middle of a character
        try:
            entry = json.loads(line)
            if entry["step"] <= step and "train_runtime" not in entry:
                kept.append(line.decode("utf-8"))
        except (ValueError, KeyError, TypeError):  # TypeError: JSON, but not an object with a step
            continue
    write_text(path, "".join(line + "\n" for line in kept))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that replaces `path` if the block succeeds and is deleted if it fails.

    An existing folder is renamed first and deleted last. If the process is killed in between, `restore_folder` (also
    called here) puts it back.
    """
    path = path.resolve()
    restore_folder(path)
    temporary, old = path.with_name(f".{path.name}.partial"), _old_folder(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        _remove(old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove a folder, or a file or link in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def restore_folder(path: Path) -> None:
    """Undo an interrupted replacement by `atomic_folder`, or finish its cleanup."""
    path = path.resolve()
    old = _old_folder(path)
    if not old.is_dir():
        return
    if path.exists():
        _remove(old)
    else:
        os.replace(old, path)


def _old_folder(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
