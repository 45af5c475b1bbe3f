"""Writing files and folders atomically: whole, or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a text file by renaming a finished temporary one into place."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, indented for reading."""
    write_text(path, to_json(value) + "\n")


def to_json(value: Any, indent: int | None = 2) -> str:
    """Strict JSON; a number that is not finite, which JSON does not have, becomes null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def append_json_line(path: Path, value: Any) -> None:
    """Append one line of JSON."""
    with path.open("a", encoding="utf-8") as file:
        file.write(to_json(value, indent=None) + "\n")


def drop_later_lines(path: Path, step: int) -> None:
    """Drop the lines of a JSON log that were written after `step`: those steps are taken again.

    An incomplete line is dropped too, and so is transformers' closing line with the run time.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            if entry["step"] <= step and "train_runtime" not in entry:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
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
    """A temporary folder that takes the place of `path` when the block succeeds, and is removed when it fails.

    A folder that is already there is moved aside first and removed last. If the process is killed between the two,
    `restore_folder` (also called here) brings it back.
    """
    path = path.resolve()
    restore_folder(path)
    temporary, old = path.with_name(f".{path.name}.partial"), _aside(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def restore_folder(path: Path) -> None:
    """Undo a replacement by `atomic_folder` that was interrupted, or finish its cleaning up."""
    path = path.resolve()
    old = _aside(path)
    if not old.is_dir():
        return
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(old, path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
