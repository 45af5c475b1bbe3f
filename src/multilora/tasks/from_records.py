"""Tasks whose examples are made record by record from a `Source`; most tasks are a short subclass of this."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from multilora.errors import DataError, RecordError
from multilora.recipe import TaskSection
from multilora.tasks.base import Example, Kind, Split, Task, held_out_positions
from multilora.tasks.readers import Record
from multilora.tasks.source import Records, Source
from multilora.tasks.store import Stored, Unused, fingerprint, stored

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


class RecordTask(Task):
    """A task that turns each record of a source into examples.

    Where the source has no evaluation split, a fixed `holdout` fraction of the training records is kept for it.
    A record that cannot be used is an error, or is left out and counted in `dropped`: with `on_error: drop`, and
    always for the reasons in `left_out`.
    """

    left_out: frozenset[str] = frozenset()

    def __init__(self, section: TaskSection, kind: Kind, source: Source) -> None:
        super().__init__(section.name, kind)
        self.section = section
        self.source = source

    @abstractmethod
    def examples(self, record: Record, where: str) -> Iterable[Example]:
        """The examples that one record stands for; often one.

        Raises:
            RecordError: the record cannot be used.
        """

    def load(self, split: Split) -> Dataset:
        """All examples of a split, memory-mapped; see `Task.load`."""
        has_eval = self.source.has_eval
        records = self.source.records("train" if split == "train" or not has_eval else "eval")
        # Where records are is in their own fingerprint; what a recipe says about the mixture changes no example.
        elsewhere = {"path", "eval_path", "split", "eval_split", "holdout", "weight", "max_examples"}
        options = self.section.model_dump(exclude=elsewhere)
        key = fingerprint([type(self).__qualname__, options, records.fingerprint()])
        built = stored(key, lambda: self._made(records))
        if not built.records:
            raise DataError(f"task {self.name!r}: no examples in {self._place(split)}: it holds no records")
        dataset = self._part(built, split, key, has_eval)
        if not len(dataset):
            counts = ", ".join(f"{reason} ({count:,})" for reason, count in self.dropped.items())
            raise DataError(
                f"task {self.name!r}: no examples in {self._place(split)}: every record was left out: {counts}; mend "
                "the data or the templates (with on_error `raise` the first of them is shown)"
            )
        if self.dropped:
            counts = ", ".join(f"{count:,} ({reason})" for reason, count in self.dropped.items())
            logger.warning("task %r, %s: left out %s of its records", self.name, split, counts)
        return dataset

    def _place(self, split: Split) -> str:
        return self.source.eval_path if split == "eval" and self.source.eval_path else self.source.path

    def _part(self, built: Stored, split: Split, key: str, has_eval: bool) -> Dataset:
        """The split's own examples, and its own counts of records left out."""
        if has_eval:
            self.dropped = {reason: len(numbers) for reason, numbers in built.unused.items()}
            return built.dataset.remove_columns("record", new_fingerprint=key)
        held_out = held_out_positions(built.records, self.section.holdout)
        counts = {
            reason: sum((number in held_out) == (split == "eval") for number in numbers)
            for reason, numbers in built.unused.items()
        }
        self.dropped = {reason: count for reason, count in counts.items() if count}
        numbers = built.dataset.data.column("record").to_numpy()
        mine = np.isin(numbers, np.fromiter(held_out, dtype=np.int64), invert=split == "train")
        name = fingerprint([key, split, self.section.holdout])
        return built.dataset.remove_columns("record").select(np.flatnonzero(mine), new_fingerprint=name)

    def _made(self, records: Records) -> Iterator[tuple[int, Example | Unused]]:
        for number, (where, record) in enumerate(records):
            try:
                examples = list(self.examples(record, where))
                if not examples:
                    raise RecordError(f"{where}: the record holds no example; mend or remove it", "no example in it")
            except RecordError as error:
                if self.section.on_error == "drop" or error.reason in self.left_out:
                    yield number, Unused(error.reason)
                    continue
                message = str(error) if where in str(error) else f"{where}: {error}"
                raise RecordError(message, error.reason) from None
            for example in examples:
                yield number, example
