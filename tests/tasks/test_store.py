"""Examples are built once, reused, and rebuilt when anything that they depend on changes."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from conftest import write_jsonl

from multilora.errors import DataError
from multilora.recipe import TaskSection
from multilora.tasks import make_task
from multilora.tasks.holdout import draw_of
from multilora.tasks.templates import FieldTemplate


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "multilora"


@pytest.fixture
def rendered(monkeypatch):
    """The number of rendered texts."""
    count = [0]
    render = FieldTemplate.render

    def counting(self, record, where):
        count[0] += 1
        return render(self, record, where)

    monkeypatch.setattr(FieldTemplate, "render", counting)
    return count


def load(path, split="train", **keys):
    keys = {"prompt": "{{ q }}", "response": "{{ a }}", **keys}
    return make_task(TaskSection(name="mine", path=str(path), **keys)).load(split)


def test_a_second_load_reuses_the_examples_of_the_first(tmp_path, cache, rendered):
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": f"q{i}", "a": f"a{i}"} for i in range(2500)])
    first = load(path)
    assert rendered[0] == 5000
    again, evaluation = load(path, weight=3.0, max_examples=7), load(path, "eval")
    assert rendered[0] == 5000
    assert again.to_list() == first.to_list()
    assert again._fingerprint == first._fingerprint != evaluation._fingerprint
    assert [Path(file["filename"]).parent.parent for file in first.cache_files] == [cache]
    held_out = {i for i in range(2500) if draw_of({"q": f"q{i}", "a": f"a{i}"}) < 0.1}
    assert 200 < len(held_out) < 300
    assert evaluation["prompt"][:] == [f"q{i}" for i in range(2500) if i in held_out]
    assert first["prompt"][:] == [f"q{i}" for i in range(2500) if i not in held_out]
    assert not list(cache.glob(".partial*"))


def test_a_changed_file_or_option_rebuilds_the_examples(tmp_path, cache, rendered):
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": f"q{i}", "a": f"a{i}"} for i in range(10)])
    load(path)
    assert load(path, prompt="{{ q }}!")[0]["prompt"].endswith("!")
    write_jsonl(path, [{"q": f"Q{i}", "a": f"a{i}"} for i in range(10)])
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    assert load(path)[0]["prompt"].startswith("Q")
    assert rendered[0] == 60


def test_an_error_leaves_nothing_behind(tmp_path, cache):
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": "q", "a": "a"}] * 1500 + [{"q": "q"}])
    for _ in range(2):
        with pytest.raises(DataError, match="line 1501"):
            load(path)
    assert list(cache.glob("examples-*")) == list(cache.glob(".partial*")) == []


def test_a_cache_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "file"))
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": "q", "a": "a"}] * 3)
    with pytest.raises(DataError, match=r"the cache cannot be written .*set HF_DATASETS_CACHE"):
        load(path)


def test_only_one_batch_of_examples_is_in_memory(tmp_path, cache, monkeypatch):
    """While records are read, the examples of at most one batch are in memory."""
    from multilora.tasks import store

    monkeypatch.setattr(store, "BATCH_ROWS", 10)
    alive = [0, 0]

    class Counted(dict):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            alive[0] += 1
            alive[1] = max(alive)

        def __del__(self):
            alive[0] -= 1

    path = write_jsonl(tmp_path / "t.jsonl", [{"q": f"q{i}", "a": "a"} for i in range(500)])
    from multilora.tasks.own_data import TextTask

    plain = TextTask.examples
    monkeypatch.setattr(TextTask, "examples", lambda self, record, where: map(Counted, plain(self, record, where)))
    assert 430 < len(load(path)) < 470
    assert alive[1] <= 12


def test_new_rows_move_no_record_to_the_other_side(tmp_path, cache):
    records = [{"q": f"q{i}", "a": f"a{i}"} for i in range(60)]
    sides = []
    for count in (2, 20, 40, 60):
        path = write_jsonl(tmp_path / f"{count}.jsonl", records[:count][::-1])
        train, held = set(load(path)["prompt"]), set(load(path, "eval")["prompt"])
        assert train
        assert held
        assert not train & held
        sides.append((train, held))
    for (train, _), (_, later_held) in itertools.combinations(sides, 2):
        assert not train & later_held


def test_copies_of_a_record_are_on_one_side(tmp_path, cache):
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": f"q{i % 10}", "a": "a"} for i in range(50)])
    train, held = load(path, holdout=0.3)["prompt"], load(path, "eval", holdout=0.3)["prompt"]
    assert not set(train) & set(held)
    assert len(train) + len(held) == 50


def test_a_touched_or_moved_file_holds_the_same_data(tmp_path, cache, rendered):
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": f"q{i}", "a": f"a{i}"} for i in range(10)])
    first = load(path)
    os.utime(path, (0, 0))
    assert load(path)._fingerprint == first._fingerprint
    (tmp_path / "elsewhere").mkdir()
    path = path.rename(tmp_path / "elsewhere" / "t.jsonl")
    assert load(path)._fingerprint == first._fingerprint
    assert rendered[0] == 20
