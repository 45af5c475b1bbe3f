"""Tasks whose examples are made record by record from a `Source`; most tasks are a short subclass of this."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from multilora.errors import DataError
from multilora.tasks.base import Example, Metric, Split, Task, held_out_positions, to_dataset
from multilora.tasks.source import Record, Source

if TYPE_CHECKING:
    from datasets import Dataset


class RecordTask(Task):
    """A task that turns each record of a source into examples.

    Where the source has no evaluation split, a fixed `holdout` fraction of the training records is kept for it.
    """

    def __init__(self, name: str, metric: Metric, source: Source, holdout: float = 0.1) -> None:
        super().__init__(name, metric)
        self.source = source
        self.holdout = holdout

    @abstractmethod
    def examples(self, record: Record, where: str) -> Iterable[Example]:
        """The examples that one record stands for; often one."""

    def load(self, split: Split) -> Dataset:
        """All examples of a split; see `Task.load`."""
        shared = split == "train" or not self.source.has_eval
        records = list(self.source.records("train" if shared else "eval"))
        if not records:
            raise DataError(f"task {self.name!r}: no examples in {self.source.path}")
        if not self.source.has_eval:
            held_out = held_out_positions(len(records), self.holdout)
            records = [item for number, item in enumerate(records) if (number in held_out) == (split == "eval")]
        built: list[Example] = []
        for where, record in records:
            try:
                built.extend(self.examples(record, where))
            except DataError as error:
                raise DataError(f"{where}: {error}" if where not in str(error) else str(error)) from None
        return to_dataset(built)
