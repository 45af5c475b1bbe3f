"""Folders are replaced as a whole, and nothing is lost if that is interrupted."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest

from multilora.files import append_json_line, atomic_folder, drop_later_lines, restore_folder, write_json

KILLED = """
import os, sys
from pathlib import Path
from multilora import files

renames = 0
real = os.replace

def counting(source, target):
    global renames
    if renames == {after}:
        os._exit(9)
    renames += 1
    real(source, target)

os.replace = counting
with files.atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "text").write_text("new")
os._exit(9)
"""


def content(folder):
    return (folder / "text").read_text()


@pytest.mark.parametrize(("after", "expected"), [(0, "old"), (1, "old"), (2, "new")])
def test_a_kill_between_the_renames_loses_nothing(after, expected, tmp_path):
    folder = tmp_path / "analysis"
    folder.mkdir()
    (folder / "text").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED.format(after=after), folder])
    assert done.returncode == 9
    restore_folder(folder)
    assert content(folder) == expected
    with atomic_folder(folder) as written:
        assert content(folder) == expected  # until the block has succeeded
        (written / "text").write_text("third")
    assert content(folder) == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["analysis"]


def test_a_block_that_fails_changes_nothing(tmp_path):
    folder = tmp_path / "analysis"
    with atomic_folder(folder) as written:
        (written / "text").write_text("old")

    def failing():
        with atomic_folder(folder) as written:
            (written / "text").write_text("new")
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert content(folder) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["analysis"]


def test_later_and_incomplete_lines_are_dropped(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2, "train_runtime": 3}\n{"step": 2}\n{"step": 3}\n{"step": ')
    drop_later_lines(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_line_that_ends_within_a_character_is_dropped(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = '{"step": 1, "task": "größer"}\n{"step": 2, "task": "gr\u2028ö'.encode()
    log.write_bytes(lines[:-1])
    drop_later_lines(log, 2)
    assert log.read_text(encoding="utf-8") == '{"step": 1, "task": "größer"}\n'


@contextmanager
def files_of_at_most(size):
    """As on a full disk, a write that goes beyond this size is cut, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    log, facts = tmp_path / "log.jsonl", tmp_path / "facts.json"
    append_json_line(log, {"step": 1})
    write_json(facts, {"step": 1})
    with files_of_at_most(30):
        for write, file in ((append_json_line, log), (write_json, facts)):
            with pytest.raises(OSError, match="File too large"):
                write(file, {"step": 2, "text": "x" * 60})
    assert [json.loads(line) for line in log.read_text().splitlines()] == [{"step": 1}]
    assert json.loads(facts.read_text()) == {"step": 1}
    assert sorted(tmp_path.iterdir()) == [facts, log]
