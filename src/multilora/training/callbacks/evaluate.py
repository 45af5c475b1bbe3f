"""Evaluation during training: scores per task, forgetting, best weights, early stopping.

All decisions are based on the log of evaluations, so a resumed run makes the same ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from multilora.evaluation.task_score import TaskScore
from multilora.files import write_json
from multilora.recipe.schema import EvaluationSection
from multilora.training.checkpoint import checkpoints, step_of
from multilora.training.evaluation_log import BEST_PREFIX, LINE_FILE, EvaluationLog


def summarise(values: dict[str, float], with_metric: set[str], best_by: str) -> float:
    """Combine the merits of all tasks into the value that evaluations are compared by.

    Args:
        values: `TaskScore.merit` of every task
        with_metric: tasks that have a metric; only these count, or all tasks if there are none
        best_by: `macro` (mean over tasks), `worst` (minimum over tasks), or the name of a task
    """
    if best_by in values:
        return values[best_by]
    compared = [value for name, value in values.items() if name in with_metric] or list(values.values())
    return min(compared) if best_by == "worst" else sum(compared) / len(compared)


class EvaluateDuringTraining(TrainerCallback):
    """Evaluate the model every `section.every` optimizer steps and at the last step.

    Args:
        section: the recipe's `evaluation:` section
        score: evaluates the current model; all processes call it, the scores of the main process are used
        log: the evaluations of the run
        trainer: a MultiTaskTrainer, which logs the scores and writes the best weights
    """

    def __init__(
        self, section: EvaluationSection, score: Callable[[], dict[str, TaskScore]], log: EvaluationLog, trainer: Any
    ) -> None:
        self.section, self.score, self.log, self.trainer = section, score, log, trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Evaluate if this step is due."""
        every = self.section.every
        if not every or (state.global_step % every and state.global_step < state.max_steps):
            return control
        model = self.trainer.model
        preserved_rng = torch.random.fork_rng(devices=[args.device] if args.device.type == "cuda" else [])
        start = time.perf_counter()
        # Compiled blocks would recompile for every sequence length.
        with preserved_rng, torch.compiler.set_stance("force_eager"):
            scores = self.score()
        seconds = time.perf_counter() - start
        model.train()
        # All processes must make the same decisions.
        (line,) = broadcast_object_list([self._line(state.global_step, scores)])
        self._record(line, args)
        flat = {**self._flat(line), "eval_seconds": round(seconds, 3)}
        step_log_due = control.should_log
        self.trainer.log(flat)
        control.should_log = step_log_due  # logging resets it, but the log of the step itself is still due
        control = self.trainer.callback_handler.on_evaluate(args, state, control, flat)
        if self.section.patience and self.log.evaluations_without_improvement >= self.section.patience:
            control.should_training_stop = True
        return control

    def _record(self, line: dict[str, Any], args: TrainingArguments) -> None:
        """Write the weights before the line, so that the line of a best evaluation always has its folder."""
        if self.log.would_be_best(line):
            folder = self.log.folder / f"{BEST_PREFIX}{line['step']}"

            def complete(new_folder: Path) -> None:
                write_json(new_folder / LINE_FILE, line)

            self.trainer.write_weights(folder, complete)
        self.log.append(line)
        self.log.prune(step_of(folder) for folder in checkpoints(Path(str(args.output_dir))))

    def _line(self, step: int, scores: dict[str, TaskScore]) -> dict[str, Any]:
        merits = {name: score.merit for name, score in scores.items()}
        with_metric = {name for name, score in scores.items() if score.value is not None}
        best_before = {name: max(self._earlier_merits(name), default=merit) for name, merit in merits.items()}
        return {
            "step": step,
            "compared": summarise(merits, with_metric, self.section.best_by),
            "merits": merits,
            "forgotten": {name: max(best_before[name] - merit, 0.0) for name, merit in merits.items()},
            "tasks": {name: asdict(score) for name, score in scores.items()},
        }

    def _earlier_merits(self, task: str) -> Iterable[float]:
        return [line["merits"][task] for line in self.log.lines]

    def _flat(self, line: dict[str, Any]) -> dict[str, float]:
        """Flatten a line for metrics.jsonl and trackers: `eval/<task>/<metric>`, `.../loss`, `.../forgotten`."""
        flat = {f"eval/{self.section.best_by}": line["compared"]}
        for name, score in line["tasks"].items():
            flat[f"eval/{name}/loss"] = score["loss"]
            flat[f"eval/{name}/forgotten"] = line["forgotten"][name]
            flat |= {f"eval/{name}/{metric}": value for metric, value in score["metrics"].items()}
        return flat
