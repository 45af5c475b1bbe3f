"""Log of the evaluations during training, and the weights of the best ones.

    evaluations.jsonl    one line per evaluation
    best-<step>/         weights of the best evaluation so far, and evaluation.json with its line

The best weights of every checkpoint are kept: a run that resumes from a checkpoint needs the best evaluation up to that
step, even if the interrupted run went on to a better one.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from multilora.errors import RunDirectoryError
from multilora.files import append_json_line, drop_later_lines
from multilora.processes import is_main_process
from multilora.training.checkpoint import checkpoints, step_of

LOG_FILE, BEST_PREFIX, LINE_FILE = "evaluations.jsonl", "best-", "evaluation.json"


class EvaluationLog:
    """The evaluations of one run. All processes hold the same lines; only the main process writes.

    Args:
        folder: the run directory
        first_step: the step that training continues from; later lines are removed

    Raises:
        RunDirectoryError: the weights of the best evaluation so far are missing.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder = folder
        path = folder / LOG_FILE
        lines = []
        if is_main_process():
            drop_later_lines(path, first_step)
            lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line] if path.exists() else []
        (lines,) = broadcast_object_list([lines])
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in lines]
        if self.best is not None and not self.best_folder.is_dir():
            raise RunDirectoryError(
                f"{self.best_folder}: missing; expected the weights of the best evaluation up to step {first_step}. "
                "Restore it, or train again with a new output_dir"
            )
        # An earlier checkpoint is used if the newest one is damaged later.
        self.prune([first_step, *(step_of(checkpoint) for checkpoint in checkpoints(folder / "checkpoints"))])

    @property
    def best(self) -> dict[str, Any] | None:
        """The line of the best evaluation, on ties the latest; None before the first."""
        return _best(self.lines)

    @property
    def best_folder(self) -> Path:
        """The folder with the weights of the best evaluation."""
        return self.folder / f"{BEST_PREFIX}{self.best['step'] if self.best else 0}"

    def would_be_best(self, line: dict[str, Any]) -> bool:
        """Return whether an evaluation is at least as good as all before it."""
        return _best([*self.lines, line]) is line

    @property
    def evaluations_without_improvement(self) -> int:
        """How many evaluations have been made since the value of the best one was first reached."""
        if self.best is None:
            return len(self.lines)
        first = next(i for i, line in enumerate(self.lines) if line["compared"] == self.best["compared"])
        return len(self.lines) - 1 - first

    def append(self, line: dict[str, Any]) -> None:
        """Add an evaluation."""
        self.lines.append(line)
        if is_main_process():
            append_json_line(self.folder / LOG_FILE, line)

    def prune(self, checkpoint_steps: Iterable[int]) -> None:
        """Remove weights that are neither the best so far nor the best up to one of the checkpoints."""
        if not is_main_process():
            return
        candidates = [self.best, *(_best(line for line in self.lines if line["step"] <= s) for s in checkpoint_steps)]
        needed = {f"{BEST_PREFIX}{line['step']}" for line in candidates if line is not None}
        for folder in self.folder.glob(f"{BEST_PREFIX}*"):
            if folder.name not in needed:
                shutil.rmtree(folder, ignore_errors=True)


def _best(lines: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    comparable = [line for line in lines if line["compared"] is not None and math.isfinite(line["compared"])]
    return max(reversed(comparable), key=lambda line: line["compared"], default=None)
