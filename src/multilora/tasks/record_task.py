"""Tasks whose examples are made record by record; most tasks are a short subclass of this."""

from __future__ import annotations

import inspect
import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from multilora.cache import cache_key, code_digest
from multilora.errors import DataError, RecordError
from multilora.example import Example, Split
from multilora.recipe.schema import TaskSection
from multilora.tasks.base import Task, held_out_indices
from multilora.tasks.readers import Record
from multilora.tasks.source import Layout, Records, Source
from multilora.tasks.store import StoredExamples, UnusedRecord, examples_key, stored_examples

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


class RecordTask(Task):
    """A task that turns each record of its source into examples.

    A record is a line of JSONL, an item of a JSON list, a row of CSV or parquet, or a row of a hub dataset; the
    recipe's `path` names the file, folder or hub dataset:

        class Contracts(RecordTask):
            kind = "generate"
            metrics = ("exact_match", "token_f1")

            def examples(self, record, where):
                answer = text_field(record, "party", where)
                yield free_example(f"{record['text']}\\n\\nWho signs?", answer, answer)

    If the source has no evaluation split, a fixed `holdout` fraction of the training records is held out. A record
    that cannot be used is an error, or is left out and counted in `dropped`: with `on_error: drop`, and always for
    the reasons in `always_dropped`. Examples are built once and read from a memory-mapped file; they are built anew
    when the data, the task's options, or a Python file beside the class has changed.

    Class attributes:
        layout: where the records are, if the recipe does not say: see `Layout`
        always_dropped: reasons of `RecordError` that are expected in this data

    Args:
        section: of the recipe
        source: in place of the one that section and layout give
    """

    layout: Layout = Layout()
    always_dropped: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, section: TaskSection, source: Source | None = None) -> None:
        super().__init__(section)
        self.source = Source(section, self.layout) if source is None else source

    @abstractmethod
    def examples(self, record: Record, where: str) -> Iterable[Example]:
        """The examples of one record; usually one.

        Args:
            record: field name -> value
            where: file and line, for messages

        Raises:
            RecordError: the record cannot be used.
        """

    def load(self, split: Split) -> Dataset:
        """All examples of a split, memory-mapped; see `Task.load`."""
        has_eval = self.source.has_eval
        records = self.source.records("train" if split == "train" or not has_eval else "eval")
        # Where records come from is in their own fingerprint, and their share of the mixture changes no example.
        unrelated = {"path", "eval_path", "split", "eval_split", "holdout", "weight", "max_examples", "metric"}
        options = self.section.model_dump(exclude=unrelated)
        key = examples_key(type(self).__qualname__, self._code(), options, records.fingerprint())
        stored = stored_examples(key, lambda: self._make(records))
        if not stored.records:
            raise DataError(f"task {self.name!r}: no examples in {self._path(split)}: it holds no records")
        dataset = self._of_split(stored, split, key, has_eval)
        if not len(dataset):
            counts = ", ".join(f"{reason} ({count:,})" for reason, count in self.dropped.items())
            raise DataError(
                f"task {self.name!r}: no examples in {self._path(split)}: every record was left out: {counts}; fix "
                "the data or the templates (with on_error `raise` the first bad record is shown)"
            )
        if self.dropped:
            counts = ", ".join(f"{count:,} ({reason})" for reason, count in self.dropped.items())
            logger.warning("task %r, %s: left out %s of its records", self.name, split, counts)
        return dataset

    def _path(self, split: Split) -> str:
        return self.source.eval_path if split == "eval" and self.source.eval_path else self.source.path

    def _code(self) -> str:
        """A hash of the Python files beside a class that is not ours; ours are in every key anyway."""
        if type(self).__module__.startswith("multilora."):
            return ""
        return code_digest(Path(inspect.getfile(type(self))).parent)

    def _of_split(self, stored: StoredExamples, split: Split, key: str, has_eval: bool) -> Dataset:
        """The split's examples; sets the counts of its records that were left out."""
        if has_eval:
            self.dropped = {reason: len(numbers) for reason, numbers in stored.unused.items()}
            return stored.dataset.remove_columns("record", new_fingerprint=key)
        held_out = held_out_indices(stored.records, self.section.holdout)
        counts = {
            reason: sum((number in held_out) == (split == "eval") for number in numbers)
            for reason, numbers in stored.unused.items()
        }
        self.dropped = {reason: count for reason, count in counts.items() if count}
        numbers = stored.dataset.data.column("record").to_numpy()
        in_split = np.isin(numbers, np.fromiter(held_out, dtype=np.int64), invert=split == "train")
        fingerprint = cache_key(key, split, self.section.holdout)
        return stored.dataset.remove_columns("record").select(np.flatnonzero(in_split), new_fingerprint=fingerprint)

    def _make(self, records: Records) -> Iterator[tuple[int, Example | UnusedRecord]]:
        for number, (where, record) in enumerate(records):
            try:
                examples = list(self.examples(record, where))
                if not examples:
                    raise RecordError(f"{where}: the record holds no example; fix or remove it", "no example in it")
            except RecordError as error:
                if self.section.on_error == "drop" or error.reason in self.always_dropped:
                    yield number, UnusedRecord(error.reason)
                    continue
                message = str(error) if where in str(error) else f"{where}: {error}"
                raise RecordError(message, error.reason) from None
            for example in examples:
                yield number, example
