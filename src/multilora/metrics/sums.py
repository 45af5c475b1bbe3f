"""Metrics of a whole set that are functions of sums over its examples: F1, exact match of groups, mean over groups.

One pass over the examples then determines the metric of every subset, such as all clusters but one, which makes
standard errors cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multilora.example import Example, references_of

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SumMetric:
    """A metric of a set of answers, computed from sums over the examples.

    Args:
        sums: `sums(examples, predictions, units, count)` adds up the examples of each unit, [count, columns];
            `units` has the index of each example's unit, from 0 to count - 1
        combine: sums [..., columns] -> values [...], in [0, 1]
        columns: number of columns; None if it depends on the examples
    """

    sums: Callable[[Sequence[Example], Sequence[str], Indices, int], Floats]
    combine: Callable[[Floats], Floats]
    columns: int | None = None

    def __call__(self, examples: Sequence[Example], predictions: Sequence[str]) -> float:
        """The value of the metric for all examples."""
        units = np.zeros(len(examples), dtype=np.int64)
        return float(self.combine(self.sums(examples, predictions, units, 1))[0])


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """The quotient; 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _fraction(sums: Floats) -> Floats:
    return _ratio(sums[..., 0], sums[..., 1])


def _f1(hits: Floats, wrong: Floats) -> Floats:
    """F1 from the numbers of true positives, and of false positives and false negatives together."""
    return _ratio(2 * hits, 2 * hits + wrong)


def item_mean(function: Callable[[Sequence[str], str], float]) -> SumMetric:
    """The mean over examples of `function(references, prediction)`."""

    def sums(examples: Sequence[Example], predictions: Sequence[str], units: Indices, count: int) -> Floats:
        values = [function(references_of(e), prediction) for e, prediction in zip(examples, predictions, strict=True)]
        return np.stack([np.bincount(units, values, count), np.bincount(units, minlength=count)], axis=1)

    return SumMetric(sums, _fraction, 2)


def f1_of(positive: str) -> SumMetric:
    """F1 of one choice, 2 TP / (2 TP + FP + FN); 0 if it occurs in neither references nor predictions.

    Over all answer candidates this is MultiRC's F1a (Khashabi et al. 2018, "Looking Beyond the Surface", section 5).
    """

    def sums(examples: Sequence[Example], predictions: Sequence[str], units: Indices, count: int) -> Floats:
        correct = np.asarray([references_of(example)[0] == positive for example in examples])
        predicted = np.asarray([prediction == positive for prediction in predictions])
        outcomes = [correct & predicted, correct != predicted]
        return np.stack([np.bincount(units, outcome, count) for outcome in outcomes], axis=1)

    return SumMetric(sums, lambda sums: _f1(sums[..., 0], sums[..., 1]), 2)


def _sums_of_classes(examples: Sequence[Example], predictions: Sequence[str], units: Indices, count: int) -> Floats:
    classes: dict[str, int] = {}
    for example in examples:
        for choice in example["choices"]:
            classes.setdefault(choice, len(classes))
    hits, wrong = np.zeros((2, count, len(classes)))
    for example, prediction, unit in zip(examples, predictions, units, strict=True):
        reference = references_of(example)[0]
        if reference == prediction:
            hits[unit, classes[reference]] += 1
        else:
            wrong[unit, classes[reference]] += 1
            if prediction in classes:
                wrong[unit, classes[prediction]] += 1
    return np.concatenate([hits, wrong], axis=1)


def _mean_of_classes(sums: Floats) -> Floats:
    hits, wrong = np.split(sums, 2, axis=-1)
    mean: Floats = _f1(hits, wrong).mean(axis=-1)
    return mean


# The unweighted mean of every class's F1, as for CommitmentBank (Wang et al. 2019, SuperGLUE, section 3). The classes
# are all choices of the examples, including those that are never correct.
f1_macro = SumMetric(_sums_of_classes, _mean_of_classes)


def _sums_of_groups(examples: Sequence[Example], predictions: Sequence[str], units: Indices, count: int) -> Floats:
    groups: dict[str, int] = {}
    columns = np.asarray([groups.setdefault(example["group"], len(groups)) for example in examples])
    hits, totals = np.zeros((2, count, len(groups)))
    correct = [p in references_of(e) for e, p in zip(examples, predictions, strict=True)]
    np.add.at(hits, (units, columns), correct)
    np.add.at(totals, (units, columns), 1)
    return np.concatenate([hits, totals], axis=1)


def _mean_over_groups(sums: Floats) -> Floats:
    hits, totals = np.split(sums, 2, axis=-1)
    return _ratio(_ratio(hits, totals).sum(axis=-1), (totals > 0).sum(axis=-1).astype(np.float64))


# Accuracy of each group, averaged over groups: MMLU's mean over subjects (Hendrycks et al. 2021, section 4).
group_accuracy = SumMetric(_sums_of_groups, _mean_over_groups)


def _sums_of_complete_groups(
    examples: Sequence[Example], predictions: Sequence[str], units: Indices, count: int
) -> Floats:
    first: dict[str, int] = {}
    all_correct: dict[str, bool] = {}
    for example, prediction, unit in zip(examples, predictions, units, strict=True):
        group = example["group"]
        first.setdefault(group, int(unit))
        all_correct[group] = all_correct.get(group, True) and prediction in references_of(example)
    of_group = np.asarray([first[group] for group in all_correct], dtype=np.int64)
    correct = np.bincount(of_group, list(all_correct.values()), count)
    return np.stack([correct, np.bincount(of_group, minlength=count)], axis=1)


# The fraction of groups with every answer correct: MultiRC's EM over questions (SuperGLUE, section 3). A unit has
# complete groups.
group_exact_match = SumMetric(_sums_of_complete_groups, _fraction, 2)


def mean_of(*metrics: SumMetric) -> SumMetric:
    """The mean of several metrics; all but the last have a fixed number of columns."""
    *fixed, _ = metrics
    ends = [int(end) for end in np.cumsum([metric.columns for metric in fixed])]

    def sums(examples: Sequence[Example], predictions: Sequence[str], units: Indices, count: int) -> Floats:
        return np.concatenate([metric.sums(examples, predictions, units, count) for metric in metrics], axis=1)

    def combine(sums: Floats) -> Floats:
        blocks = np.split(sums, ends, axis=-1)
        values = [metric.combine(block) for metric, block in zip(metrics, blocks, strict=True)]
        mean: Floats = np.mean(values, axis=0)
        return mean

    return SumMetric(sums, combine)
