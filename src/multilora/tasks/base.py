"""The `Task` base class: a task loads examples and scores the answers.

`Task.load(split)` returns a `datasets.Dataset` whose rows are `Example`s; `multilora.data` turns them into text and
tokens, in the same way for training and evaluation.
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

    `docs/add_a_task.md` has a complete example.

    Class attributes:
        kind: how the model answers: `choice` (picks the most likely choice), `generate` (generates text greedily), or
            `loss` (does not answer; only the loss is measured)
        metrics: names in `multilora.metrics.METRICS`, or name -> `Metric`; by default accuracy for `choice`,
            exact_match for `generate` and none for `loss`. The recipe's `metric:` overrides them.
        whole_groups: keep the examples of a group together when a subset is evaluated and in standard errors

    Attributes:
        name: the name in the recipe, logs and tables
        section: the task's section of the recipe; `section.options` has your own keys
        dropped: after `load`, reason -> number of dropped records of that split

    Args:
        section: the task's section of the recipe

    Raises:
        DataError: the metric or `choice_score` in the recipe does not score this kind of answer.
    """

    kind: Kind = "generate"
    metrics: Sequence[str] | Mapping[str, Metric] | None = None
    whole_groups: bool = False
    default_metric: ClassVar[dict[str, str]] = {"choice": "accuracy", "generate": "exact_match"}

    def __init__(self, section: TaskSection) -> None:
        self.name = section.name
        self.section = section
        self.dropped: dict[str, int] = {}
        if section.choice_score != "sum" and self.kind != "choice":
            raise DataError(
                f"task {self.name!r}: choice_score is {section.choice_score}, and this task has no choices; leave it "
                "out"
            )
        self._metrics = self._resolve_metrics()

    @abstractmethod
    def load(self, split: Split) -> Dataset:
        """Load all examples of a split, in the source's order, and set `dropped`.

        Raises:
            DataError: the source cannot be read or has unexpected content; names the file and line.
        """

    def final_answer(self, text: str) -> str:
        """Extract what is compared with `Example.answer` from a generated text; by default the stripped text."""
        return text.strip()

    def score(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        """The task's metrics: name -> value in [0, 1], the main one first.

        Args:
            examples: the examples that were answered
            predictions: the text of the model's choice, or the text that it generated; one per example
        """
        answers = self.answers(predictions)
        return {
            name: metric(examples, predictions if metric.whole_text else answers)
            for name, metric in self._metrics.items()
        }

    def answers(self, predictions: Sequence[str]) -> list[str]:
        """The part of each prediction that the metrics compare."""
        return [self.final_answer(text) for text in predictions] if self.kind == "generate" else list(predictions)

    def cluster_of(self, example: Example) -> str:
        """The name of the cluster of examples that are not independent, such as questions about one passage.

        Standard errors count clusters, see `multilora.evaluation.statistics.uncertainty`. Empty if the example is
        independent of the others. By default the group, if the task is scored by groups.
        """
        return example["group"] if self.whole_groups else ""

    def parts_of(self, example: Example) -> dict[str, str]:
        """The parts of the task that are also scored on their own: kind of part -> name of the example's part.

        By default none. MMLU has `{"group": "stem", "subject": "astronomy"}`.
        """
        return {}

    def head_of(self, example: Example) -> str:
        """The start of the prompt that few-shot prompts have only once, above all examples; by default empty."""
        return ""

    def fixed_shots(self, group: str) -> list[Example] | None:
        """The few-shot examples of a group's questions, in order.

        By default None: few-shot examples are drawn from the training split.
        """
        return None

    @property
    def main_metric(self) -> tuple[str, Metric] | None:
        """(name, metric) of the metric shown in tables; None if there is none."""
        return next(iter(self._metrics.items()), None)

    def _resolve_metrics(self) -> dict[str, Metric]:
        if self.section.metric is not None:
            return self._recipe_metrics(self.section.metric)
        metrics = self.metrics
        if metrics is None:
            metrics = [self.default_metric[self.kind]] if self.kind in self.default_metric else []
        if isinstance(metrics, Mapping):
            return dict(metrics)
        return {metric_label(name): find_metric(name) for name in metrics}

    def _recipe_metrics(self, name: str) -> dict[str, Metric]:
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
        return {metric_label(name): metric, **{also: METRICS[also] for also in metric.also}}
