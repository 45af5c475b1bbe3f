"""Checkpoints that are whole or not there, and what else a run needs to go on as if it had never stopped.

checkpoints/
    .writing/checkpoint-200/    being written; renamed when all of it is on disk, removed at the next start
    checkpoint-100/             transformers' own files, and progress.json: the sums behind the next line of the log
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from multilora.errors import RunDirectoryError, changes
from multilora.files import write_text
from multilora.recipe import Recipe

PREFIX, STAGING, PROGRESS_FILE = "checkpoint-", ".writing", "progress.json"


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints under a folder, oldest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of)


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


def check_same_recipe(now: Recipe, saved: Recipe) -> None:
    """A run goes on with the recipe it began with; only `output_dir` may differ.

    Raises:
        RunDirectoryError: names every difference.
    """
    found = changes(saved.model_dump(exclude={"output_dir"}), now.model_dump(exclude={"output_dir"}))
    if found:
        raise RunDirectoryError(
            f"{now.output_dir}: the run there was begun with another recipe:\n  "
            + "\n  ".join(found)
            + "\nrestore these to resume it, or start another run in a new output_dir"
        )


def forget_after(log: Path, step: int) -> None:
    """Drop the lines of a log that were written after `step`: those steps are taken again.

    A line cut off in the middle of its writing is dropped too, and so is transformers' closing line with the run time.
    """
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
            if found["step"] <= step and "train_runtime" not in found:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    write_text(log, "".join(line + "\n" for line in kept))


class StopOnSignal(TrainerCallback):
    """At SIGTERM or SIGINT: finish the step, write a checkpoint, stop. A second one ends the process as usual.

    Of several processes, which a signal reaches at different steps or not at all, the first one stops all.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Listen from here on."""
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Ask for a checkpoint and the end, if a signal came."""
        if args.world_size > 1:
            came = torch.tensor(float(self.received is not None), device=args.device)
            dist.all_reduce(came, dist.ReduceOp.MAX)
            if came.item() and self.received is None:
                self.received = "a signal to another process"
        if self.received and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave signals to whoever had them."""
        self._restore()
