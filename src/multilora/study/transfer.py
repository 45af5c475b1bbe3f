"""What the single-task runs show: one adapter per task beside the mixture, and which tasks help or hurt each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from multilora.evaluation.task_score import TaskScore
from multilora.study.differences import FinalRun, compare_with
from multilora.study.items import Items
from multilora.study.means import mean_loss, mean_value
from multilora.study.summary import mean_and_sd, summary_of


@dataclass(frozen=True)
class OnePerTask:
    """The single-task runs of one seed, each scored on its own task, compared like one run on the mixture.

    runs: task -> the run on this task alone
    """

    runs: Mapping[str, FinalRun]

    @property
    def seed(self) -> int:
        """Of all runs."""
        return next(iter(self.runs.values())).seed

    @property
    def scores(self) -> dict[str, TaskScore]:
        """Task -> score of the run that was trained on it."""
        return {task: run.scores[task] for task, run in self.runs.items()}

    @property
    def items(self) -> Items:
        """The samples of every task, from the run that was trained on it."""
        return {key: sample for task, run in self.runs.items() for key, sample in run.items.items() if key[0] == task}

    @property
    def forgetting(self) -> float | None:
        """Unknown: every adapter forgets something else."""
        return None

    def values(self) -> dict[str, Any]:
        """As `run_values`; parameters, seconds and steps are summed over the tasks."""
        training = [run.result.training for run in self.runs.values()]
        peaks = [item["peak_memory"] for item in training]
        return {
            "scores": {task: asdict(score) for task, score in self.scores.items()},
            "macro_score": mean_value(self.scores),
            "macro_loss": mean_loss(self.scores),
            "forgetting": None,
            "intruders": None,
            "spectrum": None,
            "trainable_parameters": sum(item["trainable_parameters"] for item in training),
            "seconds": sum(item["seconds"] for item in training),
            "peak_memory": None if None in peaks else max(peaks),
            "steps": sum(item["steps"] for item in training),
        }


def one_per_task_label(method: str) -> str:
    """How tables name the single-task runs of a method."""
    return f"{method}, one per task"


def single_task_results(
    method: str,
    singles: Sequence[FinalRun],
    finals: Mapping[str, Sequence[FinalRun]],
    base: Mapping[str, TaskScore] | None,
    tasks: Sequence[str],
) -> dict[str, Any]:
    """Everything about the single-task runs as JSON-compatible values.

    Args:
        method: that was trained on every task alone
        singles: its finished single-task runs
        finals: method -> its finished final runs, on the mixture
        base: task -> score before training, if it is known
        tasks: of the mixture
    """
    by_seed: dict[int, dict[str, FinalRun]] = {}
    for run in singles:
        by_seed.setdefault(run.seed, {})[str(run.cell.trained_on)] = run
    whole = [OnePerTask({task: runs[task] for task in tasks}) for runs in by_seed.values() if set(runs) == set(tasks)]
    return {
        "method": method,
        "label": one_per_task_label(method),
        "summary": summary_of([item.seed for item in whole], [item.values() for item in whole]),
        "transfer": list(_transfer(singles, finals.get(method, ()), base, tasks)),
        "differences": [item.as_dict() for item in compare_with(whole, finals)],
    }


def _transfer(
    singles: Sequence[FinalRun],
    mixture: Sequence[FinalRun],
    base: Mapping[str, TaskScore] | None,
    tasks: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """One entry per pair of tasks: trained on the first, scored on the second."""
    for trained_on in tasks:
        runs = [run for run in singles if run.cell.trained_on == trained_on]
        for scored_on in tasks if runs else ():
            yield {
                "trained_on": trained_on,
                "scored_on": scored_on,
                "seeds": len(runs),
                **_over_seeds(runs, scored_on),
                "base": None if base is None else {"score": base[scored_on].value, "loss": base[scored_on].loss},
                "mixture": _over_seeds(mixture, scored_on),
            }


def _over_seeds(runs: Sequence[FinalRun], task: str) -> dict[str, Any]:
    scores = [run.scores[task] for run in runs]
    return {
        "score": mean_and_sd([score.value for score in scores]),
        "loss": mean_and_sd([score.loss for score in scores]),
    }
