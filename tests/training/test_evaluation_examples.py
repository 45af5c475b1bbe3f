"""`evaluation.max_seconds`: how many examples evaluations during training score; the same ones at every comparison."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_evaluate_during_training import FailAt, lines

import multilora
from multilora.errors import DataError, RecipeError, RunDirectoryError, RunError
from multilora.runs import train as train_module
from multilora.training import evaluation_examples
from multilora.training.evaluation_examples import EXAMPLES_FILE, divide_seconds, seconds_per_example

OPTIONS = ["training.max_steps=8", "training.save_steps=2", "training.learning_rate=0.05", "evaluation.every=4"]
LIMITED = [*OPTIONS, "evaluation.max_seconds=0.25"]


class Clock:
    """Stands still while nothing is scored."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(evaluation_examples, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def examples_take(self, monkeypatch, **seconds):
        """Let every example of a task take this long."""
        real = train_module.score_tasks

        def timed(model, renderer, sets, *args, **options):
            for name, items in sets.items():
                self.now += seconds[name] * len(items.examples)
            return real(model, renderer, sets, *args, **options)

        monkeypatch.setattr(train_module, "score_tasks", timed)


TASKS = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(st.floats(1e-4, 10), st.integers(1, 500)), min_size=1, max_size=6
)


@given(TASKS, st.floats(0.01, 1000))
def test_every_task_gets_its_share_of_the_time_or_all_it_needs(tasks, seconds):
    costs, available = ({name: pair[index] for name, pair in tasks.items()} for index in (0, 1))
    counts = divide_seconds(seconds, costs, available)
    assert list(counts) == list(tasks)
    assert all(1 <= counts[name] <= available[name] for name in tasks)
    share = seconds / len(tasks)
    spent = {name: counts[name] * costs[name] for name in tasks}
    if all(count > 1 for count in counts.values()):
        assert sum(spent.values()) <= seconds * (1 + 1e-9)
        for name in tasks:
            assert counts[name] == available[name] or spent[name] + costs[name] > share * (1 - 1e-9)


def test_time_left_by_small_tasks_goes_to_the_others():
    counts = divide_seconds(61, {"choice": 0.01, "text": 5.0}, {"choice": 100, "text": 100})
    assert counts == {"choice": 100, "text": 12}


@pytest.mark.parametrize(("each", "limit"), [(0.01, 0.1), (0.01, 100.0), (5.0, 0.1), (0.0001, 0.1)])
def test_measuring_takes_a_limited_time(monkeypatch, each, limit):
    clock, rounds = Clock(monkeypatch), []

    def score(some):
        clock.now += each * len(some)
        rounds.append(len(some))

    assert seconds_per_example(score, list(range(300)), limit) == pytest.approx(each)
    assert sum(rounds) * each < 4 * limit or rounds == [1, 1]
    assert max(rounds) == 300 or rounds[-1] * each >= limit


def test_examples_that_are_too_long_are_not_measured_alone(monkeypatch):
    clock = Clock(monkeypatch)

    def score(some):
        if max(some) < 5:
            raise DataError("too long")
        clock.now += len(some)

    assert seconds_per_example(score, list(range(8)), 3.0) == 1.0
    with pytest.raises(DataError, match="too long"):
        seconds_per_example(score, list(range(4)), 3.0)


@pytest.mark.parametrize("stop", [3, 5])
def test_all_evaluations_score_the_same_examples_also_after_a_resume(recipe, tmp_path, monkeypatch, caplog, stop):
    clock = Clock(monkeypatch)
    with monkeypatch.context() as patch:
        clock.examples_take(patch, even=0.001, echo=0.1)
        uninterrupted = multilora.train(recipe, [*LIMITED, f"output_dir={tmp_path / 'uninterrupted'}"])
        assert "scores 4 of 4 examples of even, 2 of 3 examples of echo, which takes about 0.204 s" in caplog.text
        with pytest.raises(RunError, match="power cut"):
            multilora.train(recipe, LIMITED, callbacks=[FailAt(stop)])
    with monkeypatch.context() as patch:  # resumed on another machine, which is slower if there was an evaluation
        clock.examples_take(patch, even=0.001, echo=0.1 if stop < 4 else 1.0)
        resumed = multilora.train(recipe, LIMITED, resume=True)
    assert lines(resumed) == lines(uninterrupted)
    for line in lines(resumed):
        assert {name: score["n"] for name, score in line["tasks"].items()} == {"even": 4, "echo": 2}
    two = multilora.train(recipe, [*OPTIONS, "evaluation.max_examples_during=2", f"output_dir={tmp_path / 'two'}"])
    assert [line["tasks"]["echo"] for line in lines(two)] == [line["tasks"]["echo"] for line in lines(resumed)]
    assert all(line["eval_seconds"] > 0 for line in resumed.metrics if "eval/macro" in line)


def test_one_example_of_every_task_is_scored_even_if_it_takes_too_long(recipe, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    Clock(monkeypatch).examples_take(monkeypatch, even=10.0, echo=10.0)
    run = multilora.train(recipe, LIMITED)
    assert {score["n"] for line in lines(run) for score in line["tasks"].values()} == {1}
    assert "takes about 20 s (evaluation.max_seconds: 0.25; it must score one example or group" in caplog.text


def test_chosen_numbers_that_cannot_be_read(recipe, tmp_path):
    with pytest.raises(RunError, match="power cut"):
        multilora.train(recipe, LIMITED, callbacks=[FailAt(5)])
    file = tmp_path / "run" / EXAMPLES_FILE
    assert json.loads(file.read_text())["max_seconds"] == 0.25
    examples = ({"even": 3}, {"even": 3, "echo": "1"}, {"even": 3, "echo": 0})
    for content in ("", "[]", *(json.dumps({"examples": numbers}) for numbers in examples)):
        file.write_text(content)
        with pytest.raises(RunDirectoryError, match=rf"{EXAMPLES_FILE}: cannot be read .*restore it"):
            multilora.train(recipe, LIMITED, resume=True)


def test_a_limit_that_is_none(recipe):
    for value in ("0", "-1", ".inf", ".nan"):
        with pytest.raises(RecipeError, match=r"evaluation.max_seconds"):
            multilora.plan(recipe, ["evaluation.every=2", f"evaluation.max_seconds={value}"])
    with pytest.raises(RecipeError, match=r"evaluation.max_seconds: has no effect without evaluation during training"):
        multilora.plan(recipe, ["evaluation.max_seconds=2"])
