"""The formulas of the metrics, as pure functions with values in [0, 1].

Functions that score one answer take (references, prediction); functions that score a set take (examples, predictions).
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache

from multilora.errors import DataError
from multilora.example import Example, references_of


def is_correct(references: Sequence[str], prediction: str) -> float:
    """1 if the answer equals a reference character by character, else 0: accuracy of choices, exact match of text."""
    return float(prediction in references)


def contains(references: Sequence[str], prediction: str) -> float:
    """1 if the answer contains the words of a reference in sequence, after `normalise_answer`; else 0."""
    words = f" {normalise_answer(prediction)} "
    return float(any(f" {normalise_answer(reference)} " in words for reference in references))


_NUMBER = re.compile(r"(?<![\w.])(-?)\$?(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?")


def last_number(text: str) -> Decimal | None:
    """The last number in a text: `-3`, `1,234.50`, `$5`, the 5 of "5." and of "5 apples"; None if there is none."""
    numbers = _NUMBER.findall(text)
    if not numbers:
        return None
    sign, whole, fraction = numbers[-1]
    return Decimal(sign + whole.replace(",", "") + fraction)


def number_match(references: Sequence[str], prediction: str) -> float:
    """1 if the last number of the answer equals the last number of a reference in value (5 = 5.0), else 0.

    Raises:
        DataError: a reference without a number.
    """
    expected = [last_number(reference) for reference in references]
    if None in expected:
        raise DataError(
            f"metric number_match: the reference answer {references[expected.index(None)]!r} has no number; fix the "
            "record, or use exact_match"
        )
    return float(last_number(prediction) in expected)


def group_accuracy(examples: Sequence[Example], predictions: Sequence[str]) -> float:
    """Accuracy of each group, averaged over groups: MMLU's mean over subjects (Hendrycks et al. 2021, section 4)."""
    outcomes: dict[str, list[float]] = defaultdict(list)
    for example, prediction in zip(examples, predictions, strict=True):
        outcomes[example["group"]].append(is_correct(references_of(example), prediction))
    return _mean([_mean(group) for group in outcomes.values()])


def group_exact_match(examples: Sequence[Example], predictions: Sequence[str]) -> float:
    """The fraction of groups with every answer correct: MultiRC's EM over questions (SuperGLUE, section 3)."""
    all_correct: dict[str, bool] = {}
    for example, prediction in zip(examples, predictions, strict=True):
        group = example["group"]
        all_correct[group] = all_correct.get(group, True) and prediction in references_of(example)
    return _mean([float(value) for value in all_correct.values()])


def f1_of_class(references: Sequence[str], predictions: Sequence[str], positive: str) -> float:
    """F1 of one class, 2 TP / (2 TP + FP + FN); 0 if the class occurs in neither references nor predictions.

    Over all answer candidates this is MultiRC's F1a (Khashabi et al. 2018, "Looking Beyond the Surface", section 5).
    """
    hits = wrong = 0
    for reference, prediction in zip(references, predictions, strict=True):
        hits += reference == prediction == positive
        wrong += (reference == positive) != (prediction == positive)
    return 2 * hits / (2 * hits + wrong) if hits else 0.0


def f1_macro(examples: Sequence[Example], predictions: Sequence[str]) -> float:
    """The unweighted mean of every class's F1, as for CommitmentBank (Wang et al. 2019, SuperGLUE, section 3).

    The classes are all choices of the examples, including those that are never correct.
    """
    classes = dict.fromkeys(choice for example in examples for choice in example["choices"])
    references = [references_of(example)[0] for example in examples]
    return _mean([f1_of_class(references, predictions, name) for name in classes])


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@lru_cache(maxsize=65536)
def normalise_answer(text: str) -> str:
    """Lower-case the text and remove ASCII punctuation, English articles and extra white space.

    SQuAD's normalisation (Rajpurkar et al. 2016, section 6.1), also ReCoRD's (Zhang et al. 2018, section 5).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def normalised_match(references: Sequence[str], prediction: str) -> float:
    """1 if the answer equals a reference after `normalise_answer`, else 0 (ReCoRD's EM of one query)."""
    return float(normalise_answer(prediction) in map(normalise_answer, references))


def token_f1(references: Sequence[str], prediction: str) -> float:
    """The best F1 of the answer's tokens against a reference's, both split after `normalise_answer`.

    SQuAD's F1 (Rajpurkar et al. 2016, section 6.1) and ReCoRD's (Zhang et al. 2018, section 5): tokens are compared as
    multisets; an empty answer matches only an empty reference.
    """
    return max(_bag_f1(normalise_answer(reference), normalise_answer(prediction)) for reference in references)


def _bag_f1(reference: str, prediction: str) -> float:
    expected, answered = Counter(reference.split()), Counter(prediction.split())
    if not expected or not answered:
        return float(expected == answered)
    shared = (expected & answered).total()
    return 2 * shared / (expected.total() + answered.total())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
