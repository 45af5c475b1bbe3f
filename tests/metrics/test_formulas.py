"""The metrics on cases computed by hand, and their standard errors."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multilora.errors import DataError, RunError
from multilora.evaluation.uncertainty import main_stderr, mean_stderr
from multilora.example import choice_example, free_example
from multilora.metrics import METRICS, Metric, formulas
from multilora.recipe import TaskSection
from multilora.tasks import make_task
from multilora.tasks.superglue import CB_WORDS, YES_NO


def choices(*references, names=("x", "y"), groups=None):
    """Examples whose correct choice is each of `references`."""
    groups = groups or [""] * len(references)
    return [
        choice_example("q", list(names), names.index(name), group=group)
        for name, group in zip(references, groups, strict=True)
    ]


def test_accuracy_counts_every_correct_choice():
    examples = [choice_example("q", list("abcd"), 0, also_correct=[1]), *choices("a", "c", "d", names=tuple("abcd"))]
    assert METRICS["accuracy"](examples, ["b", "b", "c", "d"]) == 0.75


def test_f1_of_one_class():
    # y is correct in 1, 2, 3 and predicted in 1, 4, 5: TP 1, FP 2, FN 2
    assert formulas.f1_of_class(["y", "y", "y", "n", "n"], ["y", "n", "n", "y", "y"], "y") == pytest.approx(2 / 6)
    assert formulas.f1_of_class(["n", "n"], ["n", "n"], "y") == 0.0
    assert formulas.f1_of_class(["y"], ["y"], "y") == 1.0


def test_f1_macro_weighs_classes_equally():
    examples = choices(*["true"] * 4, *["false"] * 2, names=tuple(CB_WORDS))
    predictions = ["true"] * 4 + ["true", "false"]
    # true: TP 4, FP 1, FN 0 -> 8/9; false: TP 1, FN 1 -> 2/3; undecided does not occur -> 0
    assert METRICS["f1_macro"](examples, predictions) == pytest.approx((8 / 9 + 2 / 3 + 0) / 3)


def test_exact_match_over_questions():
    examples = choices(*"xyxyy", groups=["1", "1", "2", "1", "2"])
    assert formulas.group_exact_match(examples, list("xyxxy")) == 0.5


def test_mean_over_groups():
    examples = choices(*"xxxx", groups=["a", "b", "a", "a"])
    assert formulas.group_accuracy(examples, list("xxyy")) == pytest.approx((1 / 3 + 1) / 2)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 5", "5"),
        ("The total is $5.", "5"),
        ("1,234.50", "1234.5"),
        ("it falls to -3 degrees", "-3"),
        ("answer is 5 apples", "5"),
        ("2 + 3 = 5", "5"),
        ("48/2=24", "24"),
        ("from 3-5", "5"),
        ("10%", "10"),
        ("1,000,000", "1000000"),
        ("none", None),
        ("v2", None),
        ("", None),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert formulas.last_number(text) == (None if number is None else Decimal(number))


@given(st.integers(-(10**9), 10**9), st.integers(0, 999), st.booleans())
def test_every_number_is_parsed(whole, thousandths, commas):
    text = f"{whole:,}" if commas else str(whole)
    number = Decimal(f"{whole}.{thousandths:03}")
    assert formulas.last_number(f"so it is {text}.{thousandths:03}.") == number
    assert formulas.number_match([str(number)], f"${text}.{thousandths:03}") == 1.0


def test_number_match_needs_a_number_in_the_reference():
    with pytest.raises(DataError, match=r"the reference answer 'none' has no number; fix the record"):
        formulas.number_match(["none"], "5")


def test_contains_compares_whole_words():
    assert formulas.contains(["The cat"], "I saw a Cat!") == 1.0
    assert formulas.contains(["cat"], "concatenate") == 0.0
    assert formulas.contains(["red cat", "dog"], "a dog") == 1.0


def test_bleu_chrf_and_rouge_equal_the_reference_implementations():
    sacrebleu, rouge = pytest.importorskip("sacrebleu"), pytest.importorskip("rouge_score.rouge_scorer")
    references = ["the cat sat on the mat", "a quick brown fox jumps over it"]
    predictions = ["the cat is on the mat", "a quick brown dog jumps over it"]
    examples = [free_example("p", text, text) for text in references]
    assert METRICS["bleu"](examples, predictions) == sacrebleu.corpus_bleu(predictions, [references]).score / 100
    assert METRICS["chrf"](examples, predictions) == sacrebleu.corpus_chrf(predictions, [references]).score / 100
    scorer = rouge.RougeScorer(["rougeL"], use_stemmer=True)
    each = [scorer.score(r, a)["rougeL"].fmeasure for r, a in zip(references, predictions, strict=True)]
    assert METRICS["rouge_l"](examples, predictions) == pytest.approx(sum(each) / 2)
    for name in ("bleu", "chrf", "rouge_l"):
        assert METRICS[name](examples, references) == pytest.approx(1.0)


@pytest.mark.parametrize("value", [float("nan"), 34.2, -0.1, None, "high"])
def test_a_metric_must_return_a_number_from_0_to_1(value):
    metric = Metric(lambda references, prediction: value)
    with pytest.raises(RunError, match=r"returned .* for 'cat', expected a number from 0 to 1"):
        metric([free_example("p", "cat", "cat")], ["cat"])


def test_normalisation_equals_squad():
    assert formulas.normalise_answer("  The U.S.  Army, an  army") == "us army army"
    assert formulas.normalise_answer("Theatre a-b") == "theatre ab"


def test_answer_f1_takes_the_best_reference():
    # "barack obama" against "obama": 1 shared of 2 and 1 -> 2 * 1 / 3
    assert formulas.token_f1(["Obama"], "Barack Obama") == pytest.approx(2 / 3)
    assert formulas.token_f1(["Michelle", "the Barack Obama."], "Barack Obama") == 1.0
    # repeated tokens count as often as they occur in both: 2 shared of 3 and 2
    assert formulas.token_f1(["no no"], "no no no") == pytest.approx(4 / 5)
    assert formulas.token_f1(["the"], "") == 1.0
    assert formulas.token_f1(["Obama"], "") == 0.0
    assert formulas.normalised_match(["Obama", "The Obamas"], "obamas!") == 1.0
    assert formulas.normalised_match(["Obama"], "Barack Obama") == 0.0


def superglue(name):
    return make_task(TaskSection(name=f"superglue/{name}"))


def test_cb_is_the_mean_of_accuracy_and_f1():
    examples = [choice_example("q", CB_WORDS, correct) for correct in (0, 0, 1, 2)]
    score = superglue("cb").score(examples, ["true", "false", "false", "undecided"])
    f1 = (2 / 3 + 2 / 3 + 1) / 3
    assert list(score) == ["score", "accuracy", "f1_macro"]
    assert score["accuracy"] == 0.75
    assert score["f1_macro"] == pytest.approx(f1)
    assert score["score"] == pytest.approx((0.75 + f1) / 2)


def test_multirc_is_the_mean_of_f1a_and_em():
    rows = [(0, "0/0"), (1, "0/0"), (0, "0/1"), (1, "0/1")]
    examples = [choice_example("q", YES_NO, correct, group=group) for correct, group in rows]
    score = superglue("multirc").score(examples, ["yes", "no", "yes", "yes"])
    # TP 2, FP 1, FN 0 -> 4/5; one of two questions is correct
    assert score == {"score": pytest.approx(0.65), "f1a": pytest.approx(0.8), "exact_match": 0.5}


def test_record_is_the_mean_of_f1_and_em():
    examples = [choice_example("q", ["Benazir Bhutto", "Bhutto", "Rome"], 0) for _ in range(2)]
    score = superglue("record").score(examples, ["Bhutto", "Benazir Bhutto"])
    # F1 2 * 1 / 3 and 1, EM 0 and 1
    assert score == {"score": pytest.approx((5 / 6 + 0.5) / 2), "f1": pytest.approx(5 / 6), "exact_match": 0.5}


def test_the_other_tasks_are_scored_by_accuracy():
    for name in ("boolq", "copa", "rte", "wic", "wsc"):
        assert superglue(name).score([choice_example("q", YES_NO, 0)] * 2, ["yes", "no"]) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("options", "prediction", "expected"),
    [
        ({}, "  The  cat ", {"exact_match": 0.0}),
        ({}, " cat ", {"exact_match": 1.0}),
        ({"metric": "token_f1"}, "the Cat sat", {"token_f1": pytest.approx(2 / 3), "exact_match": 0.0}),
        ({"metric": "none"}, "", {}),
        ({"choices": ["cat", "dog"]}, "cat", {"accuracy": 1.0}),
        # F1 of cat is 1, that of dog, which does not occur, is 0
        ({"choices": ["cat", "dog"], "metric": "f1_macro"}, "cat", {"f1_macro": 0.5, "accuracy": 1.0}),
        ({"metric": "number_match"}, "cat 5", {"number_match": 1.0}),
        ({"metric": "contains"}, "a cat", {"contains": 1.0}),
    ],
)
def test_metrics_of_own_data(options, prediction, expected):
    task = make_task(TaskSection(name="mine", path="x.jsonl", prompt="p", response="r", **options))
    example = (
        choice_example("p", ["cat", "dog"], 0)
        if "choices" in options
        else free_example("p", "cat", "cat 5" if options.get("metric") == "number_match" else "cat")
    )
    score = task.score([example], [prediction])
    assert score == expected
    assert list(score)[:1] == list(expected)[:1]


def test_standard_error_of_a_mean():
    assert mean_stderr([1, 1, 1, 0]) == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert mean_stderr([1.0]) == 0.0


def test_standard_errors_per_item_and_by_bootstrap_agree():
    """Macro F1 of two balanced classes with equally many errors is close to accuracy."""
    task = make_task(
        TaskSection(name="mine", path="x", prompt="p", response="r", choices=["x", "y"], metric="f1_macro")
    )
    examples = choices(*"xy" * 100)
    predictions = ["yx"[i % 2] if i % 8 in (2, 5) else "xy"[i % 2] for i in range(200)]
    bootstrapped = main_stderr(task, examples, predictions)
    assert bootstrapped == pytest.approx(mean_stderr([1.0] * 150 + [0.0] * 50), rel=0.2)
    assert bootstrapped == main_stderr(task, examples, predictions)


def test_bootstrap_draws_whole_groups():
    """Answers whose correctness depends on the group vary more than independent ones."""
    task = superglue("multirc")
    examples = [choice_example("q", YES_NO, 0, group=str(i // 10)) for i in range(200)]
    predictions = ["yes" if (i // 10) % 2 else "no" for i in range(200)]
    grouped = main_stderr(task, examples, predictions)
    task.whole_groups = False
    assert grouped > 1.5 * main_stderr(task, [{**example, "group": "0"} for example in examples], predictions)
