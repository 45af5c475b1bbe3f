"""The four generated task families of the nano base, as tasks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from multilora.example import Example, Split, to_dataset
from multilora.recipe.schema import TaskSection
from multilora.tasks.base import Kind, Task

if TYPE_CHECKING:
    from datasets import Dataset

# family -> (kind, number of training examples, number of evaluation examples)
FAMILIES: dict[str, tuple[Kind, int, int]] = {
    "instructions": ("generate", 3000, 400),
    "understanding": ("choice", 3000, 400),
    "knowledge": ("choice", 3000, 400),
    "arithmetic": ("generate", 3000, 400),
}


class NanoTask(Task):
    """One generated family, named `nano/<family>` in recipes. Needs no files."""

    def __init__(self, section: TaskSection) -> None:
        self.family = section.name.removeprefix("nano/")
        self.kind, self.train_count, self.eval_count = FAMILIES[self.family]
        super().__init__(section)

    def load(self, split: Split) -> Dataset:
        """Generate a split; the examples are always the same."""
        module = importlib.import_module(f"multilora.nano.{self.family}")
        count = self.train_count if split == "train" else self.eval_count
        return to_dataset(module.examples(split, count, seed=0))

    def cluster_of(self, example: Example) -> str:
        """The person that a question of `knowledge` is about; the examples of the other families are independent."""
        return example["group"]

    def final_answer(self, text: str) -> str:
        """Return the text after "The answer is" for arithmetic, and the full text for the other families."""
        if self.family != "arithmetic":
            return super().final_answer(text)
        return text.rpartition("The answer is")[2].strip().rstrip(".")
