"""What lm-eval asked and what was answered, as this package's samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multilora.evaluation.choices import most_likely
from multilora.evaluation.samples import Sample


def sample_of(task: str, index: int, harness_task: str, row: Mapping[str, Any], metric: str, model: str) -> Sample:
    """Return a sample of lm-eval as a `Sample`.

    The answer is lm-eval's filtered response; for choices, that with the largest log-probability.

    Args:
        task: its name in the recipe
        index: of the sample in the task
        harness_task: name of the task in lm-eval; the group of the sample
        row: from `harness_scores(..., samples=True)`
        metric: main metric of the task, with or without its filter
        model: label of the model
    """
    arguments = row["arguments"]
    value = row.get(metric.partition(",")[0])
    score = float(value) if isinstance(value, int | float) else None
    common = {"task": task, "index": index, "prompt": arguments[0][0], "group": harness_task, "model": model}
    if not isinstance(arguments[0][1], str):  # generated text
        response = row["resps"][0]
        response = response[0] if isinstance(response, list) else response
        answer = row["filtered_resps"][0]
        return Sample(
            **common,
            prediction=str(response),
            answer=str(answer[0] if isinstance(answer, list) else answer),
            references=[str(row["target"])],
            score=score,
        )
    # Mutual information asks for the choices without a context too.
    pairs = [pair for pair in arguments if pair[0]]
    choices = [continuation.strip() for _, continuation in pairs]
    sums = [float(response[0]) for response in row["filtered_resps"][: len(choices)]]
    target = row["target"]
    known = isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(choices)
    prediction = choices[most_likely(sums)]
    return Sample(
        **common,
        choices=choices,
        correct=[target] if known else [],
        choice_logprobs=sums,
        prediction=prediction,
        answer=prediction,
        references=[choices[target]] if known else [str(target)],
        score=score,
    )
