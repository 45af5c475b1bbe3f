"""Atomic checkpoints.

checkpoints/
    .writing/checkpoint-200/    in progress: renamed when complete on disk, removed at the next start
    checkpoint-100/             the files of transformers, and progress.json: the running sums of the next log entry
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multilora.training.manifest import damage, write_manifest

logger = logging.getLogger(__name__)

PREFIX, STAGING, PROGRESS_FILE = "checkpoint-", ".writing", "progress.json"


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first."""
    folders = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(folders, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


@contextmanager
def staged(folder: Path, *, main_process: bool, wait: Any) -> Iterator[Path]:
    """Yield a folder to write a checkpoint to; if the block succeeds, its checkpoints are moved to `folder`.

    Args:
        folder: of all checkpoints
        main_process: whether this process moves and removes folders
        wait: barrier of all processes
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
            for checkpoint in checkpoints(staging):
                write_manifest(checkpoint)
                _flush(checkpoint)
                shutil.rmtree(folder / checkpoint.name, ignore_errors=True)
                os.replace(checkpoint, folder / checkpoint.name)
            _sync(folder)  # the rename itself
    finally:
        if main_process:
            shutil.rmtree(staging, ignore_errors=True)
    wait()


def _flush(folder: Path) -> None:
    """Flush a folder's files to disk, so that a power failure cannot leave a renamed folder with empty files."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def last_complete(folder: Path) -> Path | None:
    """Return the newest checkpoint whose files are as they were written; damaged ones are named in a warning."""
    for checkpoint in reversed(checkpoints(folder)):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("%s is damaged (%s); using the checkpoint before it", checkpoint, problem)
    return None


def later_checkpoints(folder: Path, resumed_from: Path | None) -> set[Path]:
    """Return the checkpoints after the one that training resumes from, for example damaged ones; all if it restarts."""
    complete = checkpoints(folder)
    if resumed_from is None:
        return set(complete)
    names = [path.name for path in complete]
    return set(complete[names.index(resumed_from.name) + 1 :]) if resumed_from.name in names else set()


def keep_newest(folder: Path, limit: int | None, stale: Collection[Path] = ()) -> None:
    """Remove checkpoints until at most `limit` are left: first `stale` ones, then the oldest.

    Args:
        folder: of all checkpoints
        limit: None to remove none
        stale: those that training does not continue, such as damaged ones
    """
    if limit:
        for old in sorted(checkpoints(folder), key=lambda path: (path not in stale, step_of(path)))[:-limit]:
            shutil.rmtree(old, ignore_errors=True)
