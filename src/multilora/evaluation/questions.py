"""Evaluation examples as token ids: what the model is given, and what it is scored on after that."""

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
    """An example as (prefix, continuation) token ids; the first `references` are what it should say."""

    example: Example
    sequences: list[tuple[list[int], list[int]]]
    references: int


@dataclass(frozen=True)
class Questions:
    """The examples that fit, and how many of them lost the start of their prompt."""

    questions: list[Question]
    truncated: int


def questions_of(renderer: Renderer, examples: Sequence[Example], length: int) -> Questions:
    """The examples as token ids; those of which a response does not fit are left out.

    Args:
        renderer: for its tokenizer
        examples: to be asked
        length: longest sequence in tokens; a longer prompt is cut from its left
    """
    bos = renderer.tokenizer.bos_token_id
    closing = renderer.closing_ids()
    questions = []
    truncated = 0
    for example in examples:
        if example["messages"]:
            turns = _chat_turns(renderer, example)
            fits = [fit(before, said, length, bos) for before, said in turns]
            pairs = [(ids, said) for ids, (_, said) in zip(fits, turns, strict=True) if ids is not None]
            if not pairs or len(pairs) < len(turns):
                continue
            truncated += any(len(ids) < len(before) for (ids, _), (before, _) in zip(pairs, turns, strict=True))
            questions.append(Question(example, pairs, len(pairs)))
            continue
        prefix = renderer.prefix_ids(example["prompt"])
        choices = example["choices"]
        if choices:
            # The reference comes first; `chosen` knows the order.
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
    """(all before it, what is said) of every assistant turn, as token ids."""
    tools = json.loads(example["tools"]) if example["tools"] else []
    before: list[int] = []
    turns = []
    for piece in renderer.chat_pieces(json.loads(example["messages"]), tools):
        # The first token of all has nothing before it to be predicted from.
        start = 0 if before else 1
        if piece.trained and len(piece.ids) > start:
            turns.append((before + piece.ids[:start], piece.ids[start:]))
        before += piece.ids
    return turns


def prefixes_of(
    model: Any, renderer: Renderer, questions: Sequence[Question], section: EvaluationSection
) -> tuple[list[list[int]], int]:
    """Prompts that leave room for a response among the model's positions, and how many lost their start for it.

    Raises:
        DataError: no room for any prompt.
    """
    room = (getattr(model.config, "max_position_embeddings", None) or 2**31) - section.max_new_tokens
    prefixes, shortened = [], 0
    for question in questions:
        prefix = question.sequences[0][0]
        fitted = fit(prefix, [], room, renderer.tokenizer.bos_token_id)
        if fitted is None:
            raise DataError(
                f"evaluation.max_new_tokens: {section.max_new_tokens} leaves no room for a prompt among the model's "
                "positions; make it smaller"
            )
        shortened += len(fitted) < len(prefix)
        prefixes.append(fitted)
    return prefixes, shortened
