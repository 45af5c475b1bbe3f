"""Files of samples: what is written is read; damaged and foreign files are refused; nothing is left half-written."""

from __future__ import annotations

import math
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multilora.errors import DataError, InputError
from multilora.evaluation import samples
from multilora.evaluation.samples import Sample, find_other_samples, find_samples, read_samples, write_samples

CHOICE = Sample(
    task="even",
    index=3,
    prompt="is 3 even?",
    choices=["yes", "no"],
    correct=[1],
    choice_logprobs=[-1.5, -math.inf],
    choice_tokens=[1, 2],
    prediction="yes",
    answer="yes",
    references=["no"],
    score=0.0,
    group="g/1",
    cluster="g",
    truncated=True,
    model="base",
)
TEXT = Sample(task="echo", index=0, prompt="say\n« é 日本 »", prediction="é  ", answer="é", references=["é", "e"])

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
any_sample = st.builds(
    Sample,
    task=text,
    index=st.integers(0, 2**40),
    prompt=text,
    choices=st.lists(text, max_size=3),
    correct=st.lists(st.integers(0, 5), max_size=2),
    choice_logprobs=st.lists(st.floats(allow_nan=False), max_size=3),
    choice_tokens=st.lists(st.integers(0, 9), max_size=3),
    prediction=text,
    answer=text,
    references=st.lists(text, max_size=2),
    score=st.none() | st.floats(0, 1),
    group=text,
    cluster=text,
    truncated=st.booleans(),
    model=text,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(rows=st.lists(any_sample, max_size=5))
def test_what_is_written_is_read(tmp_path, rows):
    write_samples(tmp_path / "x.parquet", rows)
    assert read_samples(tmp_path / "x.parquet") == rows


def test_many_samples_from_a_generator(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "_BATCH", 7)
    rows = [Sample(task=f"t{i % 3}", index=i, prompt=str(i)) for i in range(50)]
    path = tmp_path / "new" / "samples" / "run.parquet"
    write_samples(path, iter(rows))
    assert read_samples(path) == rows
    assert read_samples(path, ["t1"]) == rows[1::3]
    assert [item.name for item in path.parent.iterdir()] == ["run.parquet"]
    with pytest.raises(DataError, match=r"no samples of task 't9'; the file has t0, t1, t2"):
        read_samples(path, ["t9"])


def test_other_tools_can_read_the_columns(tmp_path):
    write_samples(tmp_path / "x.parquet", [CHOICE, TEXT])
    table = pq.read_table(tmp_path / "x.parquet").to_pydict()
    assert table["choice_logprobs"] == [[-1.5, -math.inf], []]
    assert table["score"] == [0.0, None]
    assert table["references"] == [["no"], ["é", "e"]]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.parquet"
    write_samples(path, [CHOICE])

    def rows():
        yield TEXT
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(path, rows())
    with pytest.raises(InputError, match=r"samples cannot be written"):
        write_samples(path, [Sample(task="t", index="first", prompt="p")])
    assert read_samples(path) == [CHOICE]
    assert list(tmp_path.iterdir()) == [path]


def test_unreadable_files(tmp_path):
    path = tmp_path / "x.parquet"
    with pytest.raises(DataError, match=r"no such file; expected samples, which `multilora eval RUN` writes"):
        read_samples(path)
    write_samples(path, [CHOICE] * 50)
    content = path.read_bytes()
    damaged = [content[:-20], content[: len(content) // 2], b"", b"no parquet", content[:4] + b"\0" * 60 + content[64:]]
    for damage in damaged:
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"cannot be read .*evaluate the run again"):
            read_samples(path)
    pq.write_table(pa.table({"task": ["a"]}), path)
    with pytest.raises(DataError, match="is not a file of samples"):
        read_samples(path)


def test_other_versions(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    monkeypatch.setattr(samples, "SCHEMA_VERSION", 4)
    write_samples(path, [CHOICE])
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"version 4 of samples, expected 3; evaluate the run again"):
        read_samples(path)
    schema = samples.samples_schema()
    table = pa.table({"task": ["a"]}).replace_schema_metadata(schema.metadata)
    pq.write_table(table, path)
    with pytest.raises(DataError, match=r"column 'task' .*|column 'index' is missing, expected int64"):
        read_samples(path)


def test_the_score_of_an_item():
    assert CHOICE.item_score == 0.0
    assert Sample(task="t", index=0, prompt="p", choices=["a", "b"], prediction="b", references=["b"]).item_score == 1.0
    assert Sample(task="t", index=0, prompt="p", choices=["a", "b"], references=["b"]).item_score is None
    assert TEXT.item_score is None
    assert CHOICE.prompt_hash != TEXT.prompt_hash
    assert [replace(TEXT, score=score).is_wrong for score in (None, 0.0, 0.5, 1.0)] == [False, True, True, False]
    errors = [replace(TEXT, score=score, higher_is_better=False) for score in (None, 0.0, 0.5, 1.0)]
    assert [error.is_wrong for error in errors] == [False, False, True, True]


def test_samples_of_a_run(tmp_path):
    with pytest.raises(DataError, match=r"no samples/ with samples here; run `multilora eval"):
        find_samples(tmp_path)
    folder = tmp_path / "samples"
    write_samples(folder / "base.parquet", [CHOICE])
    assert find_samples(tmp_path) == folder / "base.parquet"
    write_samples(folder / "run.parquet", [CHOICE])
    assert find_samples(tmp_path) == folder / "run.parquet"
    assert find_samples(tmp_path, "base") == find_other_samples(tmp_path, "base") == folder / "base.parquet"
    assert find_samples(folder / "base.parquet") == folder / "base.parquet"
    assert find_other_samples(tmp_path, tmp_path) == folder / "run.parquet"
    with pytest.raises(DataError, match=r"no samples of 'best'; choose one of base, run"):
        find_samples(tmp_path, "best")
    write_samples(folder / "step-4.parquet", [CHOICE])
    with pytest.raises(DataError, match=r"samples of several models; choose one of base, run, step-4"):
        find_samples(tmp_path)
