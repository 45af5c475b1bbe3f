"""`RecordTask`: tasks that make examples record by record. Most tasks are a short subclass of it."""

from __future__ import annotations

import inspect
import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from multilora.cache import cache_key, code_digest
from multilora.errors import DataError, RecordError
from multilora.example import Example, Split
from multilora.recipe.schema import TaskSection
from multilora.tasks.base import Task
from multilora.tasks.holdout import draw_of, held_out
from multilora.tasks.readers import Record
from multilora.tasks.source import Layout, Records, Source
from multilora.tasks.store import DroppedRecord, StoredExamples, examples_key, stored_examples

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


class RecordTask(Task):
    """A task that turns each record of its source into examples.

    A record is a line of JSONL, an item of a JSON list, or a row of CSV, parquet or a hub dataset. The recipe's `path`
    names the file, folder or hub dataset:

        class Contracts(RecordTask):
            kind = "generate"
            metrics = ("exact_match", "token_f1")

            def examples(self, record, where):
                answer = text_field(record, "party", where)
                yield free_example(f"{record['text']}\\n\\nWho signs?", answer, answer)

    If the source has no evaluation split, a fixed `holdout` fraction of the training records is held out. A record
    that cannot be used raises an error, or is dropped and counted in `dropped`: with `on_error: drop`, and always for
    the reasons in `always_dropped`. Examples are built once and read from a memory-mapped file; they are rebuilt when
    the data, the task's options or a Python file beside the class changes.

    Class attributes:
        layout: where the records are if the recipe does not set it, see `Layout`
        always_dropped: values of `RecordError.reason` that are expected in this data

    Args:
        section: the task's section of the recipe
        source: by default, made from section and layout
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
            where: file and line, for errors

        Raises:
            RecordError: the record cannot be used.
        """

    def load(self, split: Split) -> Dataset:
        """Load all examples of a split, memory-mapped; see `Task.load`."""
        has_eval = self.source.has_eval
        records = self.source.records("train" if split == "train" or not has_eval else "eval")
        # The fingerprint covers the data itself, and the other keys do not affect the stored examples.
        unrelated = {"path", "eval_path", "split", "eval_split", "holdout", "weight", "max_examples", "metric"}
        unrelated |= {"choice_score", "harness_task"}
        options = self.section.model_dump(exclude=unrelated)
        key = examples_key(type(self).__qualname__, self._code(), options, records.fingerprint())
        stored = stored_examples(key, lambda: self._make(records))
        if not stored.records:
            raise DataError(f"task {self.name!r}: no examples in {self._path(split)}: it has no records")
        dataset = self._select_split(stored, split, key, has_eval)
        if not len(dataset):
            counts = ", ".join(f"{reason} ({count:,})" for reason, count in self.dropped.items())
            raise DataError(
                f"task {self.name!r}: no examples in {self._path(split)}: every record was dropped: {counts}; fix "
                "the data or the templates (with on_error `raise` the first bad record is shown)"
            )
        if self.dropped:
            counts = ", ".join(f"{count:,} ({reason})" for reason, count in self.dropped.items())
            logger.warning("task %r, %s: dropped %s of its records", self.name, split, counts)
        return dataset

    def _path(self, split: Split) -> str:
        return self.source.eval_path if split == "eval" and self.source.eval_path else self.source.path

    def _code(self) -> str:
        """A hash of the Python files beside your own class; multilora's own code is part of every key."""
        if type(self).__module__.startswith("multilora."):
            return ""
        return code_digest(Path(inspect.getfile(type(self))).parent)

    def _select_split(self, stored: StoredExamples, split: Split, key: str, has_eval: bool) -> Dataset:
        """The examples of the split; sets `dropped`."""
        if has_eval:
            self.dropped = {reason: len(draws) for reason, draws in stored.dropped.items()}
            return stored.dataset.remove_columns("draw", new_fingerprint=key)

        def in_split(draws: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
            held = held_out(draws, self.section.holdout, stored.lowest, stored.highest)
            return held if split == "eval" else ~held

        try:
            chosen = in_split(stored.dataset.data.column("draw").to_numpy())
        except DataError as error:
            raise DataError(f"task {self.name!r}: {self._path(split)}: {error}") from None
        counts = {reason: int(in_split(np.asarray(draws)).sum()) for reason, draws in stored.dropped.items()}
        self.dropped = {reason: count for reason, count in counts.items() if count}
        fingerprint = cache_key(key, split, self.section.holdout)
        return stored.dataset.remove_columns("draw").select(np.flatnonzero(chosen), new_fingerprint=fingerprint)

    def _make(self, records: Records) -> Iterator[tuple[float, list[Example] | DroppedRecord]]:
        for where, record in records:
            draw = draw_of(record)
            try:
                examples = list(self.examples(record, where))
                if not examples:
                    raise RecordError(f"{where}: the record has no example; fix or remove it", "no example in it")
            except RecordError as error:
                if self.section.on_error == "drop" or error.reason in self.always_dropped:
                    yield draw, DroppedRecord(error.reason)
                    continue
                message = str(error) if where in str(error) else f"{where}: {error}"
                raise RecordError(message, error.reason) from None
            yield draw, examples
