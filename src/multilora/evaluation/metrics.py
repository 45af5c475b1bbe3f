"""Scores of one task, and the formulas behind them as pure functions of references and predictions.

Every value lies in [0, 1]. Which task uses which is said by the task (`Task.score`).
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache


@dataclass(frozen=True)
class TaskScore:
    """One model on one task.

    metric: name of the task's main metric, or none; value: the main metric, in [0, 1], None for `none`; n: examples;
    stderr: standard error of the value; loss: mean nats per response token (end token included), over the same
    examples; truncated: prompts that lost their start; dropped: examples left out because a response alone is too
    long, as in training; metrics: name -> value of every metric of the task, the main one first.
    """

    metric: str
    value: float | None
    stderr: float | None
    n: int
    loss: float
    truncated: int
    dropped: int
    metrics: dict[str, float] = field(default_factory=dict)


# Metrics that are the mean of one right-or-wrong outcome per example.
OUTCOME_METRICS = frozenset({"accuracy", "exact_match"})


def accuracy(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """The share of predictions that are one of the right choices of their example."""
    return _mean([prediction in right for right, prediction in zip(references, predictions, strict=True)])


def exact_match(references: Sequence[str], predictions: Sequence[str]) -> float:
    """The share of predictions that equal their reference, character by character."""
    return _mean([prediction == right for right, prediction in zip(references, predictions, strict=True)])


def grouped_accuracy(groups: Sequence[str], references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """Accuracy of each group, averaged over groups: MMLU's mean over subjects (Hendrycks et al. 2021, section 4)."""
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for group, right, prediction in zip(groups, references, predictions, strict=True):
        outcomes[group].append(prediction in right)
    return _mean([_mean(group) for group in outcomes.values()])


def f1_binary(references: Sequence[str], predictions: Sequence[str], positive: str) -> float:
    """F1 of one class, 2 TP / (2 TP + FP + FN); 0 where it is neither right nor predicted anywhere.

    Over all answer candidates it is MultiRC's F1a (Khashabi et al. 2018, "Looking Beyond the Surface", section 5).
    """
    hits = wrong = 0
    for right, prediction in zip(references, predictions, strict=True):
        hits += right == prediction == positive
        wrong += (right == positive) != (prediction == positive)
    return 2 * hits / (2 * hits + wrong) if hits else 0.0


def f1_macro(references: Sequence[str], predictions: Sequence[str], classes: Sequence[str]) -> float:
    """The unweighted mean of every class's F1, as for CommitmentBank (Wang et al. 2019, SuperGLUE, section 3)."""
    return _mean([f1_binary(references, predictions, name) for name in classes])


def group_exact_match(groups: Sequence[str], references: Sequence[str], predictions: Sequence[str]) -> float:
    """The share of groups in which every prediction is right: MultiRC's EM over questions (SuperGLUE, section 3)."""
    whole: dict[str, bool] = {}
    for group, right, prediction in zip(groups, references, predictions, strict=True):
        whole[group] = whole.get(group, True) and prediction == right
    return _mean(list(whole.values()))


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@lru_cache(maxsize=65536)
def normalise_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and extra white space.

    SQuAD's normalisation (Rajpurkar et al. 2016, section 6.1), which ReCoRD took over (Zhang et al. 2018, section 5).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_match(references: Sequence[str], prediction: str) -> float:
    """1 if the prediction equals any reference after `normalise_answer`, else 0 (ReCoRD's EM, one query)."""
    return float(any(normalise_answer(prediction) == normalise_answer(right) for right in references))


def answer_f1(references: Sequence[str], prediction: str) -> float:
    """The highest token F1 of a prediction against any of its references, tokens split after `normalise_answer`.

    SQuAD's F1 (Rajpurkar et al. 2016, section 6.1) and ReCoRD's (Zhang et al. 2018, section 5), of one query: the
    tokens of both are bags; two empty answers agree, an empty one agrees with nothing else.
    """
    return max(_token_f1(normalise_answer(right), normalise_answer(prediction)) for right in references)


def _token_f1(reference: str, prediction: str) -> float:
    right, said = Counter(reference.split()), Counter(prediction.split())
    if not right or not said:
        return float(right == said)
    shared = (right & said).total()
    return 2 * shared / (right.total() + said.total())


def mean_answer_match(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """The mean of `answer_match` over examples."""
    return _mean([answer_match(right, said) for right, said in zip(references, predictions, strict=True)])


def mean_answer_f1(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """The mean of `answer_f1` over examples."""
    return _mean([answer_f1(right, said) for right, said in zip(references, predictions, strict=True)])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
