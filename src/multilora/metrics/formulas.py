"""The formulas that score one answer, as pure functions of (references, prediction) with values in [0, 1]."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Context, Decimal
from functools import lru_cache

from multilora.errors import DataError


def is_correct(references: Sequence[str], prediction: str) -> float:
    """1 if the answer equals a reference character by character, else 0: accuracy of choices, exact match of text."""
    return float(prediction in references)


def contains(references: Sequence[str], prediction: str) -> float:
    """1 if the answer contains the words of a reference in sequence, after `normalise_answer`; else 0."""
    words = f" {normalise_answer(prediction)} "
    return float(any(f" {normalise_answer(reference)} " in words for reference in references))


_NUMBER = re.compile(
    r"""(?<!\w)(?<!\d\.)                        # not inside a word, nor the rest of 1.000.000
    (?P<sign>[-−]?)[$€£¥]?(?P<inner>[-−]?)       # -3, -$5, $-5
    (?P<number>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<!\.)\.\d+)
    (?:(?P<exponent>[eE][+-]?\d{1,3})(?!\w)|(?![eE][+-]?\d)(?:/(?P<divisor>\d+)(?![\d/]|\.\d))?)
    (?!\d|\.\d)                                # 1.000.000 and 1.2.3 are no numbers
    """,
    re.VERBOSE,
)


def numbers_in(text: str) -> Iterator[Decimal]:
    """The numbers in a text, in order.

    Numbers are `-3`, `1,234.50`, `.5`, `$5`, `-$5`, `1e3` (1000) and `3/4` (0.75); also the 5 of "5.", "5 apples" and
    "5%". `1.000.000`, `1.2.3` and `1/0` are no numbers.
    """
    for match in _NUMBER.finditer(text):
        number = Decimal(match["number"].replace(",", "") + (match["exponent"] or ""))
        if match["divisor"]:
            divisor = Decimal(match["divisor"])
            if text[match.start() - 1 : match.start()] == "/":  # 1/31/2024 is a date
                number = divisor
            elif divisor:
                number = Context(prec=28).divide(number, divisor)
            else:
                continue
        yield number.copy_negate() if match["sign"] or match["inner"] else number


def last_number(text: str) -> Decimal | None:
    """The last number in a text, see `numbers_in`; None if there is none."""
    return next(reversed(list(numbers_in(text))), None)


def number_text(number: Decimal) -> str:
    """A number in one form: `2.50` and `2.5` are both `2.5`."""
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


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
