"""Let a model answer the examples of a task: choices by log-likelihood, free text by generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from multilora.data.render import Renderer
from multilora.errors import DataError
from multilora.evaluation.choices import choice_scores, is_near_tie, lengths, most_likely
from multilora.evaluation.evaluation_set import EvaluationSet
from multilora.evaluation.generation.generate import generate
from multilora.evaluation.questions import Question, questions_of
from multilora.evaluation.requests import Request
from multilora.evaluation.samples import Sample
from multilora.evaluation.scoring.likelihoods import score_requests
from multilora.example import Example, references_of
from multilora.loss.output_head import base_of
from multilora.progress import Advance
from multilora.recipe import EvaluationSection
from multilora.tasks.base import Task


@dataclass(frozen=True)
class Answers:
    """What a model answered to the examples of a task.

    questions: those that fit
    predictions: text of the choice, or the generated text, per question; empty if the task has no answers
    choice_sums: log-probability of every choice in nats, per question
    reference_nats: negative log-likelihood of the references in nats, per question
    near_ties: questions whose two most likely choices are closer than rounding
    unfinished: responses that reached the maximum length
    """

    questions: list[Question]
    predictions: list[str]
    choice_sums: list[list[float]]
    reference_nats: list[float]
    near_ties: int = 0
    unfinished: int = 0

    @property
    def examples(self) -> list[Example]:
        """The examples that were answered."""
        return [question.example for question in self.questions]

    @property
    def loss(self) -> float:
        """Mean nats per token of all references."""
        return sum(self.reference_nats) / sum(question.reference_tokens for question in self.questions)


def answer(
    model: Any,
    renderer: Renderer,
    items: EvaluationSet,
    section: EvaluationSection,
    length: int,
    advance: Advance,
) -> Answers:
    """Let a model answer.

    Args:
        model: a causal language model in eval mode
        renderer: of the base's tokenizer
        items: the examples to be answered
        section: sets the size of batches and the maximum response length
        length: maximum tokens per sequence; longer prompts are truncated on the left
        advance: called with the number of finished examples

    Raises:
        DataError: no example fits.
    """
    task, generates = items.task, items.kind == "generate"
    questions = questions_of(
        renderer,
        items,
        length,
        answers=items.kind != "loss",
        new_tokens=section.max_new_tokens if generates else 0,
    )
    advance(len(items.examples) - len(questions))
    if not questions:
        raise DataError(
            f"task {task.name!r}: none of the {len(items.examples)} evaluation examples has a response that fits into "
            f"{length} tokens; the model cannot answer them"
        )
    requests = [request for question in questions for request in (*question.reference, *question.choices)]
    alone: list[Request] = []
    if items.kind == "choice" and task.section.choice_score == "mutual_information":
        empty = renderer.prefix_ids("")
        alone = [Request(empty, request.continuation) for question in questions for request in question.choices]
    requests += alone
    scoring = _Part(advance, len(questions) / len(requests) * (0.5 if generates else 1.0))
    results = score_requests(model, requests, batch_tokens=section.batch_tokens, advance=scoring)
    scored, unconditional = iter(results), iter(results[len(results) - len(alone) :])
    reference_nats, choice_sums = [], []
    for question in questions:
        reference_nats.append(-sum(next(scored).total for _ in question.reference))
        choice_sums.append([next(scored).total for _ in question.choices])
    predictions: list[str] = []
    near_ties = unfinished = 0
    writing: _Part | None = None
    if items.kind == "choice":
        dtype, kind = _dtype(model), task.section.choice_score
        for question, sums in zip(questions, choice_sums, strict=True):
            texts = question.example["choices"]
            counts = [len(request.continuation) for request in question.choices]
            without = [next(unconditional).total for _ in texts] if alone else []
            scores = choice_scores(kind, sums, texts, counts, without)
            near_ties += is_near_tie(scores, dtype, lengths(kind, texts, counts))
            predictions.append(texts[most_likely(scores)])
    elif generates:
        generations = generate(
            model,
            renderer.tokenizer,
            [question.prompt for question in questions],
            stop_ids={renderer.tokenizer.eos_token_id, renderer.closing_ids()[-1]},
            max_new_tokens=section.max_new_tokens,
            batch_tokens=section.batch_tokens,
            advance=(writing := _Part(advance, 0.5)),
        )
        predictions = [generation.text for generation in generations]
        unfinished = sum(not generation.finished for generation in generations)
    advance(len(questions) - scoring.shown - (writing.shown if writing else 0))
    return Answers(questions, predictions, choice_sums, reference_nats, near_ties, unfinished)


class _Part:
    """Advances a bar of examples while something else is counted; `size`: examples per unit."""

    def __init__(self, advance: Advance, size: float) -> None:
        self.advance, self.size = advance, size
        self.done, self.shown = 0.0, 0

    def __call__(self, units: int) -> None:
        self.done += units * self.size
        self.advance(int(self.done + 1e-9) - self.shown)
        self.shown = int(self.done + 1e-9)


def _dtype(model: Any) -> torch.dtype:
    dtype: torch.dtype = base_of(model).dtype
    return dtype


def samples_of(task: Task, renderer: Renderer, answers: Answers, model: str) -> list[Sample]:
    """Return every answered example for the file of samples; `model` is the label of the model."""
    predictions = answers.predictions or [""] * len(answers.questions)
    parts = task.answers(predictions) if answers.predictions else predictions
    metric = task.main_metric
    per_item = answers.predictions and metric is not None and metric[1].per == "item"
    values: Sequence[float | None] = [None] * len(parts)
    if metric is not None and per_item:
        values = metric[1].values(answers.examples, predictions if metric[1].whole_text else parts)
    samples = []
    for number, question in enumerate(answers.questions):
        example = question.example
        read = question.prompt or question.reference[0].context
        samples.append(
            Sample(
                task=task.name,
                index=question.index,
                prompt=renderer.tokenizer.decode(read),
                choices=list(example["choices"]),
                correct=list(example["correct"]),
                choice_logprobs=answers.choice_sums[number],
                choice_tokens=[len(request.continuation) for request in question.choices],
                prediction=predictions[number],
                answer=parts[number],
                references=references_of(example) if task.kind != "loss" else [example["response"]],
                score=values[number],
                reference_nats=answers.reference_nats[number],
                reference_tokens=question.reference_tokens,
                group=example["group"],
                cluster=task.cluster_of(example),
                truncated=question.truncated,
                model=model,
                higher_is_better=metric is None or not per_item or metric[1].higher_is_better,
            )
        )
    return samples
