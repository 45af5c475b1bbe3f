"""The metrics on cases worked by hand, and their standard errors."""

from __future__ import annotations

import math

import pytest

from multilora.evaluation import metrics
from multilora.evaluation.uncertainty import main_stderr, outcome_stderr
from multilora.recipe import TaskSection
from multilora.tasks import make_task
from multilora.tasks.base import choice_example, free_example
from multilora.tasks.superglue import CB_WORDS, YES_NO


def test_accuracy_counts_every_right_choice():
    assert metrics.accuracy([["a", "b"], ["a"], ["c"], ["d"]], ["b", "b", "c", "d"]) == 0.75


def test_f1_of_one_class():
    # yes is right in 1, 2, 3 and said in 1, 4, 5: TP 1, FP 2, FN 2
    assert metrics.f1_binary(["y", "y", "y", "n", "n"], ["y", "n", "n", "y", "y"], "y") == pytest.approx(2 / 6)
    assert metrics.f1_binary(["n", "n"], ["n", "n"], "y") == 0.0
    assert metrics.f1_binary(["y"], ["y"], "y") == 1.0


def test_f1_macro_weighs_classes_equally():
    right = ["true"] * 4 + ["false"] * 2
    said = ["true"] * 4 + ["true", "false"]
    # true: TP 4, FP 1, FN 0 -> 8/9; false: TP 1, FN 1 -> 2/3; undecided: nowhere -> 0
    assert metrics.f1_macro(right, said, CB_WORDS) == pytest.approx((8 / 9 + 2 / 3 + 0) / 3)


def test_exact_match_over_questions():
    groups = ["1", "1", "2", "1", "2"]
    assert metrics.group_exact_match(groups, ["y", "n", "y", "n", "n"], ["y", "n", "y", "y", "n"]) == 0.5


def test_mean_over_groups():
    value = metrics.grouped_accuracy(["a", "b", "a", "a"], [["x"]] * 4, ["x", "x", "y", "y"])
    assert value == pytest.approx((1 / 3 + 1) / 2)


def test_normalisation_is_squads():
    assert metrics.normalise_answer("  The U.S.  Army, an  army") == "us army army"
    assert metrics.normalise_answer("Theatre a-b") == "theatre ab"


def test_answer_f1_takes_the_best_reference():
    # "barack obama" against "obama": 1 shared of 2 and 1 -> 2 * 1 / 3
    assert metrics.answer_f1(["Obama"], "Barack Obama") == pytest.approx(2 / 3)
    assert metrics.answer_f1(["Michelle", "the Barack Obama."], "Barack Obama") == 1.0
    # repeated tokens are counted as often as both have them: 2 shared of 3 and 2
    assert metrics.answer_f1(["no no"], "no no no") == pytest.approx(4 / 5)
    assert metrics.answer_f1(["the"], "") == 1.0
    assert metrics.answer_f1(["Obama"], "") == 0.0
    assert metrics.answer_match(["Obama", "The Obamas"], "obamas!") == 1.0
    assert metrics.answer_match(["Obama"], "Barack Obama") == 0.0


def superglue(name):
    return make_task(TaskSection(name=f"superglue/{name}"))


def test_cb_is_the_mean_of_accuracy_and_f1():
    examples = [choice_example("q", CB_WORDS, label) for label in (0, 0, 1, 2)]
    said = ["true", "false", "false", "undecided"]
    score = superglue("cb").score(examples, said)
    f1 = (2 / 3 + 2 / 3 + 1) / 3
    assert list(score) == ["score", "accuracy", "f1_macro"]
    assert score["accuracy"] == 0.75
    assert score["f1_macro"] == pytest.approx(f1)
    assert score["score"] == pytest.approx((0.75 + f1) / 2)


def test_multirc_is_the_mean_of_f1a_and_em():
    labels, groups = [0, 1, 0, 1], ["0/0", "0/0", "0/1", "0/1"]
    examples = [choice_example("q", YES_NO, label, group=group) for label, group in zip(labels, groups, strict=True)]
    score = superglue("multirc").score(examples, ["yes", "no", "yes", "yes"])
    # TP 2, FP 1, FN 0 -> 4/5; one of two questions right
    assert score == {"score": pytest.approx(0.65), "f1a": pytest.approx(0.8), "exact_match": 0.5}


def test_record_is_the_mean_of_f1_and_em():
    examples = [choice_example("q", ["Benazir Bhutto", "Bhutto", "Rome"], 0) for _ in range(2)]
    score = superglue("record").score(examples, ["Bhutto", "Benazir Bhutto"])
    # F1 2 * 1 / 3 and 1, EM 0 and 1
    assert score == {"score": pytest.approx((5 / 6 + 0.5) / 2), "f1": pytest.approx(5 / 6), "exact_match": 0.5}


def test_the_others_are_scored_by_accuracy():
    for name in ("boolq", "copa", "rte", "wic", "wsc"):
        assert superglue(name).score([choice_example("q", YES_NO, 0)] * 2, ["yes", "no"]) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("options", "said", "expected"),
    [
        ({}, "  The  cat ", {"exact_match": 0.0}),
        ({}, " cat ", {"exact_match": 1.0}),
        ({"metric": "token_f1"}, "the Cat sat", {"token_f1": pytest.approx(2 / 3), "exact_match": 0.0}),
        ({"metric": "none"}, "", {}),
        ({"choices": ["cat", "dog"]}, "cat", {"accuracy": 1.0}),
        # cat: 1, dog: neither right nor said: 0
        ({"choices": ["cat", "dog"], "metric": "f1_macro"}, "cat", {"f1_macro": 0.5, "accuracy": 1.0}),
        ({"choices": ["cat", "dog"], "metric": "exact_match"}, "cat", {"exact_match": 1.0}),
    ],
)
def test_metrics_of_own_data(options, said, expected):
    task = make_task(TaskSection(name="mine", path="x.jsonl", prompt="p", response="r", **options))
    make = choice_example("p", ["cat", "dog"], 0) if "choices" in options else free_example("p", "cat", "cat")
    score = task.score([make], [said])
    assert score == expected
    assert list(score)[:1] == list(expected)[:1]


def test_standard_error_of_outcomes():
    assert outcome_stderr(0.75, 4) == math.sqrt(0.75 * 0.25 / 3)
    assert outcome_stderr(1.0, 1) == 0.0


def test_bootstrap_agrees_with_the_formula_where_there_is_one():
    """Token F1 of answers that are right or wrong is a mean of outcomes under another name."""
    task = make_task(TaskSection(name="mine", path="x.jsonl", prompt="p", response="r", metric="token_f1"))
    examples = [free_example("p", "cat", "cat")] * 200
    said = ["cat"] * 150 + ["dog"] * 50
    assert main_stderr(task, examples, said) == pytest.approx(outcome_stderr(0.75, 200), rel=0.2)
    assert main_stderr(task, examples, said) == main_stderr(task, examples, said)


def test_bootstrap_draws_whole_groups():
    """Answers that are right or wrong by questions vary more than as many on their own."""
    task = superglue("multirc")
    examples = [choice_example("q", YES_NO, 0, group=str(i // 10)) for i in range(200)]
    said = ["yes" if (i // 10) % 2 else "no" for i in range(200)]
    grouped = main_stderr(task, examples, said)
    task.whole_groups = False
    assert grouped > 1.5 * main_stderr(task, [{**example, "group": "0"} for example in examples], said)
