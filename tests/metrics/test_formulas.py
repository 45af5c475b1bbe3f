"""The metrics on cases computed by hand, and their standard errors."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multilora.errors import DataError, RunError
from multilora.example import choice_example, free_example
from multilora.metrics import METRICS, Metric, formulas, sums
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
    # y is correct in 2, 3, 4 and predicted in 1, 2, 5: TP 1, FP 2, FN 2
    assert sums.f1_of("y")(choices(*"xyyyx"), list("yyxxy")) == pytest.approx(2 / 6)
    assert sums.f1_of("y")(choices("x", "x"), ["x", "x"]) == 0.0
    assert sums.f1_of("y")(choices("y"), ["y"]) == 1.0


def test_f1_macro_weighs_classes_equally():
    examples = choices(*["true"] * 4, *["false"] * 2, names=tuple(CB_WORDS))
    predictions = ["true"] * 4 + ["true", "false"]
    # true: TP 4, FP 1, FN 0 -> 8/9; false: TP 1, FN 1 -> 2/3; undecided does not occur -> 0
    assert METRICS["f1_macro"](examples, predictions) == pytest.approx((8 / 9 + 2 / 3 + 0) / 3)


def test_exact_match_over_questions():
    examples = choices(*"xyxyy", groups=["1", "1", "2", "1", "2"])
    assert sums.group_exact_match(examples, list("xyxxy")) == 0.5


def test_mean_over_groups():
    examples = choices(*"xxxx", groups=["a", "b", "a", "a"])
    assert sums.group_accuracy(examples, list("xxyy")) == pytest.approx((1 / 3 + 1) / 2)


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
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("−7", "-7"),
        ("#### $5", "5"),
        (".5", "0.5"),
        ("so...5", "5"),
        ("50%", "50"),
        ("1e3", "1000"),
        ("2.5e-3", "0.0025"),
        ("3/4", "0.75"),
        ("48/2", "24"),
        ("1,000/8", "125"),
        ("1/31/2024", "2024"),
        ("1,2,3", "3"),
        ("\\boxed{5}", "5"),
        ("$18$", "18"),
        # no numbers: ambiguous, a version, a division by zero, too large
        ("1.000.000", None),
        ("2, or 1.2.3", "2"),
        ("1/0", None),
        ("1e9999", None),
        ("none", None),
        ("v2", None),
        ("", None),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert formulas.last_number(text) == (None if number is None else Decimal(number))


@given(
    st.decimals(-(10**12), 10**12, places=3, allow_nan=False),
    st.booleans(),
    st.sampled_from(["{}", "so it is {}.", "#### {}", "{}, I think", "{} apples", "={}%"]),
    st.sampled_from(["", "$"]),
)
def test_every_number_is_parsed(number, commas, text, currency):
    digits = format(abs(number), ",f" if commas else "f")
    sign = "-" if number < 0 else ""
    assert formulas.last_number(text.format(f"{sign}{currency}{digits}")) == number
    assert formulas.number_match([str(number)], f"{currency}{sign}{digits}") == 1.0
    assert formulas.last_number(formulas.number_text(number)) == number


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**4))
def test_equal_fractions_are_equal_numbers(numerator, divisor):
    assert formulas.number_match([f"{numerator}/{divisor}"], f"{3 * numerator}/{3 * divisor}") == 1.0
    assert formulas.number_match([f"{numerator}/{divisor}"], f"{numerator + 1}/{divisor}") == 0.0


@given(st.text() | st.text(alphabet="0123456789.,-$/eE+ #\n", max_size=60))
def test_any_text_has_numbers_or_none(text):
    for number in formulas.numbers_in(text):
        assert number.is_finite()
        assert formulas.last_number(formulas.number_text(number)) == number


def test_long_runs_of_digits_are_numbers():
    assert formulas.last_number("9" * 10_000) == Decimal("9" * 10_000)
    assert formulas.last_number("1" * 10_000 + "/" + "1" * 10_000) == 1


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


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
def test_f1a_and_em_equal_their_definitions(answers):
    """Precision and recall of all answers, and questions with every answer correct, counted one by one."""
    examples = [choice_example("q", YES_NO, 0 if label else 1, group=f"0/{question}") for label, _, question in answers]
    predictions = ["yes" if predicted else "no" for _, predicted, _ in answers]
    hits = sum(label and predicted for label, predicted, _ in answers)
    precision, recall = (hits / max(1, sum(answer[k] for answer in answers)) for k in (1, 0))
    f1a = 2 * precision * recall / (precision + recall) if hits else 0.0
    questions = {question for _, _, question in answers}
    em = sum(all(label == predicted for label, predicted, q in answers if q == question) for question in questions)
    score = superglue("multirc").score(examples, predictions)
    assert score["f1a"] == pytest.approx(f1a)
    assert score["exact_match"] == pytest.approx(em / len(questions))
    assert score["score"] == pytest.approx((f1a + em / len(questions)) / 2)


def test_record_is_the_mean_of_f1_and_em():
    examples = [choice_example("q", ["Benazir Bhutto", "Bhutto", "Rome"], 0) for _ in range(2)]
    score = superglue("record").score(examples, ["Bhutto", "Benazir Bhutto"])
    # F1 2 * 1 / 3 and 1, EM 0 and 1
    assert score == {"score": pytest.approx((5 / 6 + 0.5) / 2), "f1": pytest.approx(5 / 6), "exact_match": 0.5}


def test_record_takes_the_best_of_several_answers():
    entities = ["Benazir Bhutto", "the Bhuttos", "Rome"]
    examples = [choice_example("q", entities, 0, also_correct=[1])] * 3
    score = superglue("record").score(examples, ["the Bhuttos", "Benazir Bhutto", "Rome"])
    assert score == {"score": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3), "exact_match": pytest.approx(2 / 3)}


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
