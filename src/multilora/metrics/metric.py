"""What a metric is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from multilora.errors import RunError
from multilora.example import Example, references_of


@dataclass(frozen=True)
class Metric:
    """A number in [0, 1] for a task's answers.

    Args:
        function: with `per="item"`, `function(references, prediction)` scores one answer against the list of its
            correct answers, and the metric is the mean over examples; with `per="set"`,
            `function(examples, predictions)` scores all answers of the task at once
        answers: what it scores: the text of the `choice` that the model took, or the `text` that it generated
        per: `item` or `set`; the standard error is s / sqrt(n) for the first and bootstrapped for the second
        higher_is_better: False for error rates
        also: names of metrics of the table that are reported beside it
        requires: a package that `function` imports, if it is not a dependency of multilora
    """

    function: Callable[..., float]
    answers: Literal["choice", "text"] = "text"
    per: Literal["item", "set"] = "item"
    higher_is_better: bool = True
    also: tuple[str, ...] = ()
    requires: str | None = None

    def values(self, examples: Sequence[Example], predictions: Sequence[str]) -> list[float]:
        """The value of each example, [examples]; of all of them together, [1], if it is defined on the set."""
        if self.per == "set":
            return [self._checked(self.function(examples, predictions), "the whole set")]
        return [
            self._checked(self.function(references_of(example), prediction), repr(prediction))
            for example, prediction in zip(examples, predictions, strict=True)
        ]

    def __call__(self, examples: Sequence[Example], predictions: Sequence[str]) -> float:
        """The metric of a task.

        Args:
            examples: what was asked; at least one
            predictions: the answers, one per example

        Raises:
            RunError: the function returned something that is not a number in [0, 1].
        """
        values = self.values(examples, predictions)
        return sum(values) / len(values)

    def _checked(self, value: Any, scored: str) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= 1:
            name = getattr(self.function, "__qualname__", repr(self.function))
            raise RunError(f"metric {name}: returned {value!r} for {scored[:80]}, expected a number from 0 to 1")
        return number
