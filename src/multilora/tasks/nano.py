"""The four generated families of the embedded base, as tasks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from multilora.recipe import TaskSection
from multilora.tasks.base import Example, Metric, Split, Task, to_dataset

if TYPE_CHECKING:
    from datasets import Dataset

# family -> (metric, training examples generated unless max_examples says less, evaluation examples)
FAMILIES: dict[str, tuple[Metric, int, int]] = {
    "instructions": ("exact_match", 3000, 400),
    "understanding": ("accuracy", 3000, 400),
    "knowledge": ("accuracy", 3000, 400),
    "arithmetic": ("exact_match", 3000, 400),
}


class NanoTask(Task):
    """One generated family; the recipe's name is `nano/<family>`. Needs no files."""

    def __init__(self, section: TaskSection) -> None:
        self.family = section.name.removeprefix("nano/")
        metric, self.train_count, self.eval_count = FAMILIES[self.family]
        super().__init__(section.name, metric)

    def load(self, split: Split) -> Dataset:
        """Generate a split; always the same examples."""
        module = importlib.import_module(f"multilora.nano.{self.family}")
        count = self.train_count if split == "train" else self.eval_count
        rows = module.examples(split, count, seed=0)
        return to_dataset(
            [
                Example(
                    prompt=row["prompt"],
                    response=row["response"],
                    choices=row["choices"],
                    labels=[row["label"]] if row["choices"] else [],
                    answer=row["answer"],
                )
                for row in rows
            ]
        )

    def final_answer(self, text: str) -> str:
        """Arithmetic: what follows "The answer is"; the others: the text itself."""
        if self.family != "arithmetic":
            return super().final_answer(text)
        return text.rpartition("The answer is")[2].strip().rstrip(".")
