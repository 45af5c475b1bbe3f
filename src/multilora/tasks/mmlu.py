"""MMLU: 57 subjects of four-way multiple choice (Hendrycks et al. 2021, arXiv 2009.03300).

The official data has folders `dev/`, `val/` and `test/` with a CSV file per subject, without a header; its columns are
the question, four choices and the letter. `auxiliary_train/` has questions of other benchmarks in the same columns,
without a subject. The hub's `cais/mmlu` has question, subject, choices and the index of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from multilora.errors import DataError, RecordError, nearest
from multilora.example import Example, Split
from multilora.metrics import METRICS, Metric
from multilora.metrics.sums import group_accuracy
from multilora.recipe.schema import TaskSection
from multilora.tasks.mmlu_groups import GROUP_OF
from multilora.tasks.multiple_choice import lettered_example
from multilora.tasks.readers import Record, RecordStream, read_csv_rows
from multilora.tasks.record_task import RecordTask
from multilora.tasks.source import Layout, Records, Source, field, file_fingerprint, list_field, text_field

LETTERS = ("A", "B", "C", "D")
AUXILIARY, DEV, VAL, TEST = "auxiliary_train", "dev", "val", "test"


@dataclass(frozen=True)
class SubjectFiles:
    """The rows of CSV files as records; the subject is part of the file name."""

    paths: list[Path]

    def __iter__(self) -> RecordStream:
        for path in self.paths:
            part = path.parent.name
            subject = "" if part == AUXILIARY else path.stem.removesuffix(f"_{part}")
            for where, row in read_csv_rows(path):
                if len(row) != 6:
                    raise DataError(f"{where}: {len(row)} columns, expected question, four choices and the letter")
                yield where, {"question": row[0], "choices": row[1:5], "answer": row[5].strip(), "subject": subject}

    def fingerprint(self) -> list[object]:
        """See `file_fingerprint`; the folder decides about the subject."""
        return [[path.parent.name for path in self.paths], file_fingerprint(self.paths)]


class MmluSource(Source):
    """The folder with `dev/`, `val/` and `test/`, or the folder above it; or the hub."""

    def __init__(self, section: TaskSection, subject: str) -> None:
        layout = Layout("hub:cais/mmlu", None, subject or "all", ("dev+validation", "test"))
        super().__init__(section, layout)
        self.subject = subject

    @property
    def has_eval(self) -> bool:
        """Always true: the format has a test split."""
        return True

    def records(self, split: Split) -> Records:
        """See `Source.records`; the training split is `dev`, `val` and, if present, `auxiliary_train`."""
        if self.is_hub:
            return super().records(split)
        if self.eval_path is not None:
            raise DataError(
                f"{self.eval_path}: MMLU's test split is in the same folder as the others; leave eval_path out"
            )
        root = self._root()
        if split == "eval":
            return SubjectFiles(self._subjects(root / TEST))
        auxiliary = sorted((root / AUXILIARY).glob("*.csv")) if not self.subject else []
        return SubjectFiles(auxiliary + self._subjects(root / DEV) + self._subjects(root / VAL))

    def dev(self) -> Records:
        """The records of `dev`, five per subject, which are the examples of few-shot prompts."""
        return self.hub_records(DEV) if self.is_hub else SubjectFiles(self._subjects(self._root() / DEV))

    def _root(self) -> Path:
        root = Path(self.path)
        root = root if (root / TEST).is_dir() else root / "data"
        if not (root / TEST).is_dir():
            raise DataError(
                f"{self.path}: expected folders {DEV}, {VAL} and {TEST} in it or in data/ below it; unpack the "
                "official data.tar there, or leave path out to read hub:cais/mmlu"
            )
        return root

    def _subjects(self, folder: Path) -> list[Path]:
        end = f"_{folder.name}.csv"
        files = {path.name.removesuffix(end): path for path in sorted(folder.glob(f"*{end}"))}
        if not files:
            raise DataError(f"{folder}: expected files <subject>{end}; unpack the official data there")
        if not self.subject:
            return list(files.values())
        if self.subject not in files:
            hint = nearest(self.subject, files) or f"; the subjects are {', '.join(files)}"
            raise DataError(f"{folder}: no subject {self.subject!r}{hint}")
        return [files[self.subject]]


class Mmlu(RecordTask):
    """All subjects (`mmlu`) or one (`mmlu/<subject>`), answered by a letter.

    Subjects are strata, not clusters: all 57 are always there, and within each the questions are independent.
    """

    kind = "choice"

    def __init__(self, section: TaskSection) -> None:
        self.subject = section.name.partition("/")[2]
        self.metrics = {"accuracy": METRICS["accuracy"]}
        if not self.subject:
            self.metrics["accuracy_over_subjects"] = Metric(group_accuracy, answers="choice", per="set")
        super().__init__(section, MmluSource(section, self.subject))
        self.source: MmluSource

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """One example; RecordError if the answer is neither a letter nor an index."""
        answer = field(record, "answer", where)
        if answer in LETTERS:
            correct = LETTERS.index(answer)
        elif isinstance(answer, int) and 0 <= answer < len(LETTERS):
            correct = answer
        else:
            raise RecordError(f"{where}: answer {answer!r}, expected a letter A to D or 0 to 3", "unknown label")
        subject = text_field(record, "subject", where)
        choices = [str(choice) for choice in list_field(record, "choices", where)]
        question = text_field(record, "question", where)
        yield lettered_example(question, choices, correct, where, head=_head(subject), group=subject)

    def parts_of(self, example: Example) -> dict[str, str]:
        """The subject, and its group of subjects."""
        if self.subject:
            return {}
        subject = example["group"]
        return {"group": GROUP_OF.get(subject, "other"), "subject": subject}

    def head_of(self, example: Example) -> str:
        """The line about the subject, and the empty line below it."""
        return f"{_head(example['group'])}\n\n"

    def fixed_shots(self, group: str) -> list[Example]:
        """The questions about a subject in `dev`."""
        return self._dev.get(group, [])

    @cached_property
    def _dev(self) -> dict[str, list[Example]]:
        shots: dict[str, list[Example]] = {}
        for where, record in self.source.dev():
            try:
                (example,) = self.examples(record, where)
            except RecordError:
                if self.section.on_error != "drop":
                    raise
                continue
            shots.setdefault(example["group"], []).append(example)
        return shots


def _head(subject: str) -> str:
    about = f" about {subject.replace('_', ' ')}" if subject else ""
    return f"The following are multiple choice questions (with answers){about}."
