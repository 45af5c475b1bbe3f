"""The table of metrics. Adding a metric needs one entry here and no other change."""

from __future__ import annotations

from typing import Any

from multilora.errors import InputError, nearest
from multilora.metrics import formulas, sums, translation
from multilora.metrics.metric import Metric
from multilora.references import is_reference, load_reference

METRICS: dict[str, Metric] = {
    # Metrics of the model's choice.
    "accuracy": Metric(formulas.is_correct, answers="choice"),
    "f1_macro": Metric(sums.f1_macro, answers="choice", per="set", also=("accuracy",)),
    # Metrics of generated text.
    "exact_match": Metric(formulas.is_correct),
    "contains": Metric(formulas.contains),
    "number_match": Metric(formulas.number_match),
    "token_f1": Metric(formulas.token_f1, also=("exact_match",)),
    "bleu": Metric(translation.bleu, per="set", requires="sacrebleu"),
    "chrf": Metric(translation.chrf, per="set", requires="sacrebleu"),
    "rouge_l": Metric(translation.rouge_l, requires="rouge_score"),
}


def find_metric(name: str) -> Metric:
    """Look up a metric by its name in the table, or import your own by reference: `my_metrics:rouge`.

    A reference names a `Metric`, or a function of (references, prediction) that scores one generated text.

    Raises:
        InputError: the metric is unknown, or the reference names something else.
    """
    if name in METRICS:
        return METRICS[name]
    if not is_reference(name):
        raise InputError(
            f"unknown metric {name!r}{nearest(name, METRICS)}; known metrics are {', '.join(METRICS)}, and "
            "your own as module:name"
        )
    loaded: Any = load_reference(name)
    if isinstance(loaded, Metric):
        return loaded
    if callable(loaded) and not isinstance(loaded, type):
        return Metric(loaded)
    raise InputError(
        f"metric {name!r} is a {type(loaded).__name__}, expected a function of (references, prediction) or a "
        "multilora.metrics.Metric"
    )


def metric_label(name: str) -> str:
    """The name of a metric in tables; your own metrics are shown without their module."""
    return name if name in METRICS else name.rpartition(":")[2]
