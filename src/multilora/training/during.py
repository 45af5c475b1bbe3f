"""Evaluation while a run trains: every task's scores, what was forgotten, the best weights so far, early stopping.

evaluations.jsonl holds one line per evaluation, best/ the weights of the best one. Everything that decides on later
steps is read back from the lines, so a resumed run takes the same decisions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from multilora.files import write_json
from multilora.processes import is_main_process
from multilora.recipe import EvaluationSection
from multilora.training.checkpoint import forget_after

if TYPE_CHECKING:
    from multilora.evaluation.metrics import TaskScore

LOG_FILE, BEST_FOLDER, BEST_FILE = "evaluations.jsonl", "best", "evaluation.json"


def merits(scores: dict[str, TaskScore]) -> dict[str, float]:
    """One number per task, larger is better: its main metric, or minus its loss where it has none."""
    return {name: -score.loss if score.value is None else score.value for name, score in scores.items()}


def summarise(values: dict[str, float], scored: set[str], best_by: str) -> float:
    """The number that evaluations are compared by.

    Args:
        values: from `merits`
        scored: tasks with a metric; if there are none, the losses of all decide
        best_by: `macro` (mean over tasks), `worst` (the lowest), or a task's name
    """
    if best_by in values:
        return values[best_by]
    chosen = [value for name, value in values.items() if name in scored] or list(values.values())
    return min(chosen) if best_by == "worst" else sum(chosen) / len(chosen)


class EvaluateDuring(TrainerCallback):
    """Scores the model every `section.every` optimizer steps and at the last one.

    Args:
        section: of the recipe
        score: scores the model as it is now; every process calls it, the first one's scores count
        path: of the run
        begun: the step the run goes on from; later lines of an earlier attempt are dropped
    """

    def __init__(
        self,
        section: EvaluationSection,
        score: Callable[[], dict[str, TaskScore]],
        path: Path,
        begun: int,
    ) -> None:
        self.section, self.score, self.path = section, score, path
        self.trainer: Any = None  # a MultiTaskTrainer, set once it is made: it logs and writes weights
        log = path / LOG_FILE
        lines = []
        if is_main_process():
            forget_after(log, begun)
            lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        (lines,) = broadcast_object_list([lines])
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in lines]

    @property
    def best(self) -> dict[str, Any] | None:
        """The line of the best evaluation, the earliest of equal ones."""
        return max(self.lines, key=lambda line: line["compared"], default=None)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Evaluate if it is time."""
        every = self.section.every
        if not every or (state.global_step % every and state.global_step < state.max_steps):
            return control
        model = self.trainer.model
        kept = torch.random.fork_rng(devices=[args.device] if args.device.type == "cuda" else [])
        with kept, torch.compiler.set_stance("force_eager"):  # compiled blocks would be compiled anew for every length
            scores = self.score()
        model.train()
        # What is decided from it must be decided alike in every process.
        (line,) = broadcast_object_list([self._line(state.global_step, scores)])
        self.lines.append(line)
        if self.best is line:
            self.trainer.write_weights(self.path / BEST_FOLDER, lambda folder: write_json(folder / BEST_FILE, line))
        if state.is_world_process_zero:
            with (self.path / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        flat = self._flat(line)
        due = control.should_log
        self.trainer.log(flat)
        control.should_log = due  # the step's own log is still to come
        control = self.trainer.callback_handler.on_evaluate(args, state, control, flat)
        patience = self.section.patience
        if patience and self.best is not None:
            since = len(self.lines) - 1 - self.lines.index(self.best)
            control.should_training_stop = control.should_training_stop or since >= patience
        return control

    def _line(self, step: int, scores: dict[str, TaskScore]) -> dict[str, Any]:
        values = merits(scores)
        scored = {name for name, score in scores.items() if score.value is not None}
        before = {name: max([*(line["merits"][name] for line in self.lines), value]) for name, value in values.items()}
        return {
            "step": step,
            "compared": summarise(values, scored, self.section.best_by),
            "merits": values,
            "forgotten": {name: before[name] - value for name, value in values.items()},
            "tasks": {name: asdict(score) for name, score in scores.items()},
        }

    def _flat(self, line: dict[str, Any]) -> dict[str, float]:
        """What trackers and metrics.jsonl get: `eval/<task>/<metric>`, `eval/<task>/loss`, `eval/<task>/forgotten`."""
        flat = {f"eval/{self.section.best_by}": line["compared"]}
        for name, score in line["tasks"].items():
            flat[f"eval/{name}/loss"] = score["loss"]
            flat[f"eval/{name}/forgotten"] = line["forgotten"][name]
            flat |= {f"eval/{name}/{metric}": value for metric, value in score["metrics"].items()}
        return flat
