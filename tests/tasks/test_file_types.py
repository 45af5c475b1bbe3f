"""Compressed files, .tsv and patterns are read like the plain files that they stand for."""

from __future__ import annotations

import gzip
import re
import shutil

import pytest

import multilora
from multilora.errors import DataError, RecipeError
from multilora.files import files_of
from multilora.tasks.readers import read_records

CONTENT = {
    "jsonl": '{"q": "a\\tb", "a": "1"}\n{"q": "ü", "a": "2"}\n',
    "json": '[{"q": "a\\tb", "a": "1"}, {"q": "ü", "a": "2"}]',
    "csv": 'q,a\n"a\tb",1\nü,2\n',
    "tsv": 'q\ta\n"a\tb"\t1\nü\t2\n',
}


def read(path):
    return [record for _, record in read_records(path)]


@pytest.mark.parametrize("kind", CONTENT)
def test_types(kind, tmp_path):
    plain, compressed = tmp_path / f"d.{kind}", tmp_path / f"d.{kind}.gz"
    plain.write_text(CONTENT[kind])
    compressed.write_bytes(gzip.compress(CONTENT[kind].encode()))
    assert read(plain) == read(compressed) == [{"q": "a\tb", "a": "1"}, {"q": "ü", "a": "2"}]


def test_damaged_files(tmp_path):
    whole = gzip.compress(CONTENT["jsonl"].encode() * 100)
    for content, message in (
        (whole[: len(whole) // 2], "is damaged"),
        (b"plain text", "cannot be read"),
        (whole[:20] + bytes(30) + whole[50:], "is damaged|cannot be read"),
    ):
        (tmp_path / "d.jsonl.gz").write_bytes(content)
        with pytest.raises(DataError, match=message):
            read(tmp_path / "d.jsonl.gz")
    (tmp_path / "d.tsv").write_text("q\ta\na\n")
    with pytest.raises(DataError, match="quote cells that have a tab"):
        read(tmp_path / "d.tsv")
    for name in ("d.parquet.gz", "d.txt.gz", "d.gz"):
        with pytest.raises(DataError, match="unknown file type"):
            read(tmp_path / name)


def test_patterns(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name in ("b.csv", "a.csv", "c.txt", "sub/d.csv", "[x].csv"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)

    def names(path):
        return [str(file) for file in files_of(path)]

    assert names("*.csv") == ["[x].csv", "a.csv", "b.csv"]
    assert names("**/*.csv") == ["[x].csv", "a.csv", "b.csv", "sub/d.csv"]
    assert names("[x].csv") == ["[x].csv"]
    assert names("[ab].csv") == ["a.csv", "b.csv"]
    assert names("*.json") == ["*.json"]


def test_a_pattern_in_a_recipe(recipe, tmp_path):
    """The same records in parts give the same plan."""
    path = tmp_path / "even.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "0.jsonl").write_text("".join(lines[:15]))
    (tmp_path / "parts" / "1.jsonl.gz").write_bytes(gzip.compress("".join(lines[15:]).encode()))
    whole = multilora.plan(recipe)
    recipe["tasks"][0]["path"] = str(tmp_path / "parts" / "*")
    assert multilora.plan(recipe).as_dict() == whole.as_dict()
    recipe["tasks"][0]["path"] = str(tmp_path / "parts")
    shutil.move(tmp_path / "parts" / "1.jsonl.gz", tmp_path / "parts" / "train.jsonl.gz")
    assert multilora.plan(recipe).as_dict() != whole.as_dict()  # the training file of a folder
    recipe["tasks"][0]["path"] = str(tmp_path / "parts" / "*.csv")
    with pytest.raises(RecipeError, match=re.escape("no such file or folder: ")):
        multilora.plan(recipe)
