"""Atomic checkpoints.

checkpoints/
    .writing/checkpoint-200/    being written; renamed once all of it is on disk, removed at the next start
    checkpoint-100/             transformers' files, and progress.json: the sums behind the next line of the log
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PREFIX, STAGING, PROGRESS_FILE = "checkpoint-", ".writing", "progress.json"


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    folders = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(folders, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


@contextmanager
def staged(folder: Path, *, main_process: bool, wait: Any) -> Iterator[Path]:
    """A folder to write a checkpoint into; what lies in it when the block ends well is moved up into `folder`.

    Args:
        folder: of all checkpoints
        main_process: whether this process moves and removes
        wait: called where processes must meet
    """
    staging = folder / STAGING
    if main_process:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True, exist_ok=True)
    wait()
    try:
        yield staging
        wait()
        if main_process:
            for written in checkpoints(staging):
                _flush(written)
                shutil.rmtree(folder / written.name, ignore_errors=True)
                os.replace(written, folder / written.name)
    finally:
        if main_process:
            shutil.rmtree(staging, ignore_errors=True)
    wait()


def _flush(folder: Path) -> None:
    """Wait until a folder's files are on disk: a machine that stops must not leave a renamed but empty file."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def keep_newest(folder: Path, limit: int | None) -> None:
    """Remove the oldest checkpoints beyond `limit`."""
    if limit:
        for old in checkpoints(folder)[:-limit]:
            shutil.rmtree(old, ignore_errors=True)
