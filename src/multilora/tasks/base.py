"""What a task is: it loads examples, and says how the answers to them are scored.

`Task.load(split)` returns a `datasets.Dataset` whose rows are `Example`s; `multilora.data` turns them into text and
tokens, the same way for training and evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from multilora.errors import DataError
from multilora.example import Example, Split
from multilora.metrics import METRICS, Metric
from multilora.metrics.table import find_metric, metric_label
from multilora.recipe.schema import TaskSection

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["choice", "generate", "loss"]


class Task(ABC):
    """A task of the mixture.

    To write your own, subclass `RecordTask` if your data is a list of records in files or on the hub, and this class
    if it comes from anywhere else. Then name it in a recipe, as `task: my_tasks:Contracts`:

        class Contracts(Task):
            kind = "generate"                       # how the model answers, see below
            metrics = ("exact_match", "token_f1")   # names in the table of metrics; the first is the main one

            def load(self, split):                  # "train" or "eval"
                rows = read_contracts(self.section.path, split, **self.section.options)
                return to_dataset([free_example(row.question, row.answer, row.answer) for row in rows])

    `docs/add_a_task.md` has a whole one.

    Class attributes:
        kind: how the model answers: `choice` (the most likely of the choices), `generate` (greedy text), or `loss`
            (not at all, only the loss is measured)
        metrics: names in `multilora.metrics.METRICS`, or name -> `Metric`; by default accuracy for `choice`,
            exact_match for `generate` and none for `loss`. A recipe's `metric:` replaces them.
        whole_groups: keep all examples of a group together when a subset is evaluated and when standard errors are
            bootstrapped

    Attributes:
        name: the name in the recipe, in logs and in tables
        section: the task's section of the recipe; `section.options` are your own keys
        dropped: after `load`, reason -> number of records of that split that were left out

    Args:
        section: of the recipe

    Raises:
        DataError: the recipe's metric does not score this kind of answer.
    """

    kind: Kind = "generate"
    metrics: Sequence[str] | Mapping[str, Metric] | None = None
    whole_groups: bool = False
    default_metric: ClassVar[dict[str, str]] = {"choice": "accuracy", "generate": "exact_match"}

    def __init__(self, section: TaskSection) -> None:
        self.name = section.name
        self.section = section
        self.dropped: dict[str, int] = {}
        self._metrics = self._resolved_metrics()

    @abstractmethod
    def load(self, split: Split) -> Dataset:
        """All examples of a split, in the source's order; sets `dropped`.

        Raises:
            DataError: the source cannot be read or holds something unexpected; says where.
        """

    def final_answer(self, text: str) -> str:
        """What is compared with `Example.answer` in a generated text; here the text without white space around it."""
        return text.strip()

    def score(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        """The task's metrics: name -> value in [0, 1], the main one first.

        Args:
            examples: what was asked
            predictions: the text of the choice that the model took, or the text that it generated; one per example
        """
        answers = self.answers(predictions)
        return {name: metric(examples, answers) for name, metric in self._metrics.items()}

    def answers(self, predictions: Sequence[str]) -> list[str]:
        """The part of each prediction that metrics compare."""
        return [self.final_answer(text) for text in predictions] if self.kind == "generate" else list(predictions)

    @property
    def main_metric(self) -> tuple[str, Metric] | None:
        """(name, metric) of the task's value in tables; None if there is none."""
        return next(iter(self._metrics.items()), None)

    def _resolved_metrics(self) -> dict[str, Metric]:
        if self.section.metric is not None:
            return self._of_recipe(self.section.metric)
        metrics = self.metrics
        if metrics is None:
            metrics = [self.default_metric[self.kind]] if self.kind in self.default_metric else []
        if isinstance(metrics, Mapping):
            return dict(metrics)
        return {metric_label(name): find_metric(name) for name in metrics}

    def _of_recipe(self, name: str) -> dict[str, Metric]:
        if name == "none":
            return {}
        metric = find_metric(name)
        expected = {"choice": "choice", "generate": "text"}.get(self.kind)
        if metric.answers != expected:
            scored = "nothing" if expected is None else "choices" if expected == "choice" else "generated text"
            raise DataError(
                f"task {self.name!r}: metric {name} scores {metric.answers}, but this task's kind is {self.kind} and "
                f"its metrics score {scored}; choose another metric"
            )
        return {metric_label(name): metric, **{other: METRICS[other] for other in metric.also}}


def held_out_indices(count: int, fraction: float) -> set[int]:
    """Which of `count` records are held out for evaluation if a source has no evaluation split.

    A fixed function of both numbers, so that training and evaluation agree without sharing state; at least one
    record is on either side.

    Raises:
        DataError: fewer than two records.
    """
    import random

    if count < 2:
        raise DataError(f"{count} record(s) cannot be split into training and evaluation; add data or an eval_path")
    size = min(max(1, round(count * fraction)), count - 1)
    return set(random.Random(0).sample(range(count), size))
