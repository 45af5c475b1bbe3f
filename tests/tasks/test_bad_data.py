"""Each kind of bad data raises a clear error, or is dropped and counted."""

from __future__ import annotations

import json

import pytest
from conftest import numbered, write_jsonl

from multilora.errors import DataError
from multilora.recipe import TaskSection
from multilora.tasks import make_task


def task(path, **keys):
    keys = {"prompt": "{{ q }}", "response": "{{ a }}", **keys}
    return make_task(TaskSection(name="mine", path=str(path), **keys))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"q": "a", "a": "b"}\n\n{"q": "a"', r"t.jsonl, line 3: broken JSON \(.*column"),
        ("t.jsonl", b"[1]\n", "t.jsonl, line 1: is list, expected an object with named fields"),
        ("t.jsonl", b"[" * 100_000, "nested too deeply"),
        ("t.json", b'{"q": "a"}\n{"q": "b"}\n', "t.json, line 2: broken JSON .*name a file with one object per line"),
        ("t.json", b'{"q": "a"}', "is dict, expected a list of objects"),
        ("t.jsonl", b'{"q": "a", "a": "b"}\n{"q": "\xff"}\n', r"byte 28 is not UTF-8 \(line 2\); convert"),
        ("t.csv", b"q,a\n\xe9,b\n", r"byte 4 is not UTF-8 \(line 2\)"),
        ("t.csv", b"q,a\nx,y\nz\n", r"t.csv, line 3: 1 columns, expected the 2 of the header \('q', 'a'\)"),
        ("t.csv", b"q,a\nx,y,z\n", "line 2: 3 columns, expected the 2"),
        ("t.csv", b'q,a\nx,"y\n', "broken CSV .*; quote every cell"),
        ("t.csv", b"q,q\nx,y\n", "the header has 'q' twice"),
        ("t.parquet", b"q,a\nx,y\n", "t.parquet: cannot be read as parquet"),
        ("t.parquet", b"", "t.parquet: cannot be read as parquet"),
        ("t.txt", b"q", "unknown file type '.txt'; expected one of .jsonl, .ndjson, .json, .csv, .parquet"),
        ("t.csv", b"q,a\n", "no examples in .*t.csv: it has no records"),
        ("t.jsonl", b"\n", "no examples in .*t.jsonl: it has no records"),
        (
            "t.jsonl",
            b'{"q": "a", "a": "b"}',
            r"a single record \(or copies of one\) cannot be split into training and evaluation",
        ),
        ("t.csv", b"q,answer\nx,y\nx,y\n", r"line 2: the response template: 'a' is undefined; the record has 'q', 'an"),
        ("t.jsonl", b'{"q": "a", "a": null}', "line 1: the response template: a field it uses is null"),
        ("t.jsonl", b'{"q": "a", "a": " "}', "line 1: the response is empty, so no token would be trained on"),
    ],
)
def test_files_that_cannot_be_used(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        task(tmp_path / name).load("train")


def test_a_cell_that_is_too_large_is_reported(tmp_path):
    (tmp_path / "t.csv").write_text("q,a\nx," + "y" * 200_000 + "\n")
    with pytest.raises(DataError, match=r"line 2: broken CSV \(field larger .*convert the file to .jsonl"):
        task(tmp_path / "t.csv").load("train")


def test_line_breaks_within_records(tmp_path):
    """U+2028 does not end a line, quoted cells may contain line breaks, and later lines have the correct number."""
    lines = [f'{{"q": "x\u2028y", "a": "b{i}"}}\n' for i in range(3)]
    (tmp_path / "t.jsonl").write_text("".join(lines), encoding="utf-8")
    assert task(tmp_path / "t.jsonl").load("train")[0]["prompt"] == "x\u2028y"
    (tmp_path / "t.csv").write_text('\ufeffq,a\r\n"x\r\ny",b\r\nz\r\n', encoding="utf-8", newline="")
    with pytest.raises(DataError, match=r"t.csv, line 4: 1 columns"):
        task(tmp_path / "t.csv").load("train")


def test_a_template_that_is_not_closed(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", numbered({"q": "a", "a": "b"}, 3))
    with pytest.raises(DataError, match=r"task 'mine': the prompt template is not valid Jinja2: .*\(in '\{\{ q'\)"):
        task(path, prompt="{{ q")
    with pytest.raises(DataError, match="the answer template is not valid Jinja2"):
        task(path, prompt=None, response=None, question="{{ q }}", choices=["a", "b"], answer="{% if a %}")


def test_a_template_that_fails_on_a_record(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", numbered({"q": "a", "a": "b"}, 3))
    with pytest.raises(DataError, match="line 1: the response template: "):
        task(path, response="{{ 1 / (a|length - 1) }}").load("train")


def test_a_response_outside_the_choices(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", numbered({"q": "a", "a": "maybe"}, 3))
    with pytest.raises(DataError, match=r"line 1: response 'maybe' is not one of the choices \['yes', 'no'\]; add it"):
        task(path, choices=["yes", "no"]).load("train")


def test_bad_records_are_dropped_and_counted_with_on_error_drop(tmp_path, caplog):
    records = [{"q": f"q{i}", "a": "yes"} for i in range(40)]
    records[3]["a"] = ""
    records[4]["a"] = "maybe"
    records[5]["a"] = None
    del records[6]["q"]
    path = write_jsonl(tmp_path / "t.jsonl", records)
    with pytest.raises(DataError, match="line 4: the response is empty"):
        task(path, choices=["yes", "no"]).load("train")
    dropping = task(path, choices=["yes", "no"], on_error="drop")
    train, dropped = dropping.load("train"), dict(dropping.dropped)
    evaluation = dropping.load("eval")
    for reason, count in dropping.dropped.items():
        dropped[reason] = dropped.get(reason, 0) + count
    assert dropped == {"empty response": 1, "response is no choice": 1, "null field": 1, "missing field": 1}
    assert len(train) + len(evaluation) == 36
    assert "dropped" in caplog.text
    # Dropping records does not change which records are held out.
    assert set(evaluation["prompt"]) <= set(
        task(path, response="{{ q }}", prompt="{{ q|default('') }}", on_error="drop").load("eval")["prompt"]
    )


def test_dropping_hides_neither_an_empty_dataset_nor_a_broken_file(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", numbered({"q": "a", "b": "b"}, 5))
    with pytest.raises(DataError, match=r"every record was dropped: missing field \(\d\); fix"):
        task(path, on_error="drop").load("train")
    path.write_text('{"q": "a", "a": "b"}\n{')
    with pytest.raises(DataError, match="line 2: broken JSON"):
        task(path, on_error="drop").load("train")


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("multirc", {"idx": 0, "passage": {"text": "x"}}, "no field 'questions'; the record has 'text'"),
        ("multirc", {"idx": 0, "passage": "x"}, "expected an object with a field 'questions', got 'x'"),
        ("record", {"passage": {"text": "x", "entities": []}, "qas": 3}, "field 'qas' is int, expected a list"),
        ("rte", {"premise": None, "hypothesis": "x", "label": 0}, "field 'premise' is null, expected text"),
        ("multirc", {"idx": 0, "passage": {"text": "x", "questions": []}}, "the record has no example"),
    ],
)
def test_benchmark_records_with_an_unexpected_structure(name, record, message, tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(record))
    with pytest.raises(DataError, match=f"train.jsonl, line 1: {message}"):
        make_task(TaskSection(name=f"superglue/{name}", path=str(tmp_path))).load("train")
