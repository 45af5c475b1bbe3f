"""Samples: every evaluated example with its answer and score, in a Parquet file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multilora.errors import DataError, InputError
from multilora.files import atomic_file

if TYPE_CHECKING:
    import pyarrow

SCHEMA_VERSION = 3
SAMPLES_FOLDER = "samples"
_VERSION_KEY = b"multilora_samples"
# Rows are written in batches, so that their texts need not be in memory twice.
_BATCH = 1000
_OPTIONAL = ("score", "reference_nats", "reference_tokens")


@dataclass(frozen=True)
class Sample:
    """One evaluated example.

    task: name of the task in the recipe
    index: of the example in the task's evaluation set
    prompt: text that the model read
    choices: possible answers; empty for generated text
    correct: indices of the correct choices
    choice_logprobs: log-probability of each choice in nats
    choice_tokens: number of tokens of each choice
    prediction: text of the model's choice, or the text that it generated
    answer: part of the prediction that the metrics compare
    references: correct answers
    score: main metric of this example, if the metric is a mean over examples; else None
    reference_nats: negative log-likelihood of the correct answers in nats, in this package's prompt; None if unknown
    reference_tokens: number of their tokens, with the end token
    group: see `Example`
    cluster: see `Task.cluster_of`
    truncated: whether the prompt was truncated
    model: label of the model, such as `base`
    higher_is_better: False if the score is an error: 0 is best
    """

    task: str
    index: int
    prompt: str
    choices: list[str] = field(default_factory=list)
    correct: list[int] = field(default_factory=list)
    choice_logprobs: list[float] = field(default_factory=list)
    choice_tokens: list[int] = field(default_factory=list)
    prediction: str = ""
    answer: str = ""
    references: list[str] = field(default_factory=list)
    score: float | None = None
    reference_nats: float | None = None
    reference_tokens: int | None = None
    group: str = ""
    cluster: str = ""
    truncated: bool = False
    model: str = ""
    higher_is_better: bool = True

    @property
    def item_score(self) -> float | None:
        """The score; without one, 1 or 0 for a correct or wrong choice; None for text, and without an answer."""
        if self.score is not None or not self.choices or not self.prediction:
            return self.score
        return float(self.prediction in self.references)

    @property
    def is_wrong(self) -> bool:
        """Whether the answer has a score, and not the best possible one."""
        best = 1.0 if self.higher_is_better else 0.0
        return self.item_score is not None and self.item_score != best

    @property
    def prompt_hash(self) -> str:
        """A hash of the prompt, by which the samples of two models are matched."""
        return hashlib.sha256(self.prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def samples_schema() -> pyarrow.Schema:
    """The columns of a file of samples."""
    import pyarrow as pa

    text, texts = pa.string(), pa.list_(pa.string())
    columns = {
        "task": text,
        "index": pa.int64(),
        "prompt": text,
        "choices": texts,
        "correct": pa.list_(pa.int64()),
        "choice_logprobs": pa.list_(pa.float64()),
        "choice_tokens": pa.list_(pa.int64()),
        "prediction": text,
        "answer": text,
        "references": texts,
        "score": pa.float64(),
        "reference_nats": pa.float64(),
        "reference_tokens": pa.int64(),
        "group": text,
        "cluster": text,
        "truncated": pa.bool_(),
        "model": text,
        "higher_is_better": pa.bool_(),
    }
    return pa.schema(
        [pa.field(name, kind, nullable=name in _OPTIONAL) for name, kind in columns.items()],
        metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()},
    )


def write_samples(path: str | Path, rows: Iterable[Sample]) -> None:
    """Write samples to a Parquet file, atomically; its folder is made if necessary.

    Raises:
        InputError: a value does not fit its column; nothing is written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = samples_schema()
    try:
        with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for batch in _batches(rows):
                writer.write_batch(_record_batch(batch, schema))
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
        raise InputError(f"{path}: samples cannot be written ({error}); pass `Sample`s with valid values") from error


def _batches(rows: Iterable[Sample]) -> Iterable[list[Sample]]:
    batch: list[Sample] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _record_batch(samples: Sequence[Sample], schema: pyarrow.Schema) -> Any:
    import pyarrow as pa

    arrays = [pa.array([getattr(sample, item.name) for sample in samples], item.type) for item in schema]
    return pa.record_batch(arrays, schema=schema)


def read_samples(path: str | Path, tasks: Sequence[str] | None = None) -> list[Sample]:
    """Read a file of samples.

    Args:
        path: of a file written by `write_samples`
        tasks: names of the tasks to read; by default all

    Raises:
        DataError: the file is missing, damaged, of another kind or version, or has none of the tasks.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected samples, which `multilora eval RUN` writes to RUN/samples/")
    try:
        table = pq.ParquetFile(path).read()
        _check_schema(path, table.schema)
        rows = [Sample(**row) for row in table.select([item.name for item in fields(Sample)]).to_pylist()]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: cannot be read ({reason}); the file is damaged, evaluate the run again") from None
    if tasks is None:
        return rows
    known = list(dict.fromkeys(row.task for row in rows))
    if unknown := [name for name in tasks if name not in known]:
        raise DataError(f"{path}: no samples of task {unknown[0]!r}; the file has {', '.join(known) or 'no samples'}")
    return [row for row in rows if row.task in tasks]


def find_samples(path: str | Path, label: str | None = None) -> Path:
    """Find the file of samples of a run.

    Args:
        path: a file of samples, or the directory of an evaluated run
        label: of the model; by default the only one, or the only one besides `base`

    Raises:
        DataError: there is no such file, or there are several.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    files = {file.stem: file for file in sorted((path / SAMPLES_FOLDER).glob("*.parquet"))}
    if not files:
        raise DataError(f"{path}: no {SAMPLES_FOLDER}/ with samples here; run `multilora eval {path}` first")
    names = list(files)
    if label is not None:
        names = [label]
    elif len(files) > 1:
        names = [name for name in files if name != "base"]
    if len(names) != 1 or names[0] not in files:
        wanted = f"no samples of {label!r}" if label is not None else "samples of several models"
        raise DataError(f"{path}: {wanted}; choose one of {', '.join(files)}")
    return files[names[0]]


def find_other_samples(path: str | Path, other: str | Path) -> Path:
    """Find the file of samples to compare with: that of a file or run, or of another model of the run at `path`."""
    if not Path(other).exists() and Path(path).is_dir():
        return find_samples(path, str(other))
    return find_samples(other)


def _check_schema(path: Path, schema: pyarrow.Schema) -> None:
    version = (schema.metadata or {}).get(_VERSION_KEY)
    if version is None:
        raise DataError(
            f"{path}: is not a file of samples; expected one that `multilora eval RUN` writes to RUN/samples/"
        )
    if version != str(SCHEMA_VERSION).encode():
        raise DataError(
            f"{path}: version {version.decode(errors='replace')} of samples, expected {SCHEMA_VERSION}; evaluate the "
            "run again with this version of multilora"
        )
    for expected in samples_schema():
        index = schema.get_field_index(expected.name)
        if index < 0 or schema.field(index).type != expected.type:
            actual = "is missing" if index < 0 else f"is {schema.field(index).type}"
            raise DataError(
                f"{path}: column {expected.name!r} {actual}, expected {expected.type}; the file is damaged, evaluate "
                "the run again"
            )
