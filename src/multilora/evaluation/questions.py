"""Evaluation examples as token ids: the prefixes that the model reads and the continuations that are scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from multilora.data.render import Renderer
from multilora.data.tokenize import fit
from multilora.errors import DataError
from multilora.example import Example
from multilora.recipe import EvaluationSection


@dataclass(frozen=True)
class Question:
    """An example as (prefix, continuation) token ids; the first `references` are the expected ones."""

    example: Example
    sequences: list[tuple[list[int], list[int]]]
    references: int


@dataclass(frozen=True)
class Questions:
    """The examples that fit, and the number of them whose prompt was truncated."""

    questions: list[Question]
    truncated: int


def questions_of(renderer: Renderer, examples: Sequence[Example], length: int) -> Questions:
    """Tokenize examples; drop those with a response that does not fit.

    Args:
        renderer: of the base's tokenizer
        examples: to be evaluated
        length: maximum tokens per sequence; longer prompts are truncated on the left
    """
    bos = renderer.tokenizer.bos_token_id
    closing = renderer.closing_ids()
    questions = []
    truncated = 0
    for example in examples:
        if example["messages"]:
            turns = _chat_turns(renderer, example)
            fitted_contexts = [fit(context, reply, length, bos) for context, reply in turns]
            sequences = [
                (ids, reply) for ids, (_, reply) in zip(fitted_contexts, turns, strict=True) if ids is not None
            ]
            if not sequences or len(sequences) < len(turns):
                continue
            truncated += any(len(ids) < len(context) for (ids, _), (context, _) in zip(sequences, turns, strict=True))
            questions.append(Question(example, sequences, len(sequences)))
            continue
        prefix = renderer.prefix_ids(example["prompt"])
        choices = example["choices"]
        if choices:
            # The reference comes first, as `most_likely_choice` expects.
            reference = example["correct"][0]
            responses = [choices[reference], *(choice for index, choice in enumerate(choices) if index != reference)]
        else:
            responses = [example["response"]]
        continuations = [renderer.response_ids(response) + closing for response in responses]
        fitted = fit(prefix, max(continuations, key=len), length, bos)
        if fitted is None:
            continue
        truncated += len(fitted) < len(prefix)
        questions.append(Question(example, [(fitted, continuation) for continuation in continuations], 1))
    return Questions(questions, truncated)


def _chat_turns(renderer: Any, example: Example) -> list[tuple[list[int], list[int]]]:
    """Return (context, reply) token ids of every assistant turn."""
    tools = json.loads(example["tools"]) if example["tools"] else []
    context: list[int] = []
    turns = []
    for piece in renderer.chat_pieces(json.loads(example["messages"]), tools):
        # The first token of a chat cannot be predicted from anything.
        start = 0 if context else 1
        if piece.trained and len(piece.ids) > start:
            turns.append((context + piece.ids[:start], piece.ids[start:]))
        context += piece.ids
    return turns


def prefixes_of(
    model: Any, renderer: Renderer, questions: Sequence[Question], section: EvaluationSection
) -> tuple[list[list[int]], int]:
    """Return the prompts, truncated to leave room for a response, and the number of truncated ones.

    Raises:
        DataError: there is no room for a prompt.
    """
    room = (getattr(model.config, "max_position_embeddings", None) or 2**31) - section.max_new_tokens
    prefixes, truncated = [], 0
    for question in questions:
        prefix = question.sequences[0][0]
        fitted = fit(prefix, [], room, renderer.tokenizer.bos_token_id)
        if fitted is None:
            raise DataError(
                f"evaluation.max_new_tokens: {section.max_new_tokens} leaves no room for a prompt in the model's "
                "positions; reduce it"
            )
        truncated += len(fitted) < len(prefix)
        prefixes.append(fitted)
    return prefixes, truncated
