"""Evaluation examples as token ids: what the model reads, and the continuations that are scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from multilora.data.render import Renderer
from multilora.data.tokenize import fit
from multilora.errors import DataError
from multilora.evaluation.evaluation_set import EvaluationSet
from multilora.evaluation.requests import Request
from multilora.example import Example


@dataclass(frozen=True)
class Question:
    """An example in tokens.

    index: of the example in the evaluation set
    reference: the expected responses with their end tokens, for the loss; one per assistant turn of a chat
    choices: one request per choice; empty if the response is free text
    prompt: what a response is generated after
    end_scored: whether the end tokens of the choices are scored too, because a choice begins another
    truncated: whether the prompt lost its start
    fewer_shots: whether the prompt has fewer shots than it should, because all of them do not fit
    """

    example: Example
    index: int
    reference: list[Request]
    choices: list[Request] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    end_scored: bool = False
    truncated: bool = False
    fewer_shots: bool = False

    @property
    def reference_tokens(self) -> int:
        """The number of tokens of the expected responses, with their end tokens."""
        return sum(len(request.continuation) for request in self.reference)


def one_begins_another(choices: Sequence[list[int]]) -> bool:
    """Return whether a choice is a prefix of another; without its end token, it could never be less likely."""
    return any(a is not b and b[: len(a)] == a for a in choices for b in choices)


def questions_of(
    renderer: Renderer, items: EvaluationSet, length: int, *, answers: bool, new_tokens: int = 0
) -> list[Question]:
    """Tokenize examples; those with a response that does not fit are left out.

    Args:
        renderer: of the base's tokenizer
        items: the examples to be evaluated
        length: maximum tokens per sequence; longer prompts lose shots, the last one first, and are then truncated on
            the left
        answers: whether the model answers; else only the reference is scored
        new_tokens: tokens to leave room for in the prompts of generated responses

    Raises:
        DataError: `new_tokens` leaves no room for a prompt.
    """
    questions = []
    for index, example in enumerate(items.examples):
        if example["messages"]:
            question = _chat_question(renderer, example, index, length)
        else:
            question = _text_question(renderer, items, index, length, answers, new_tokens)
        if question is not None:
            questions.append(question)
    return questions


def _text_question(
    renderer: Renderer, items: EvaluationSet, index: int, length: int, answers: bool, new_tokens: int
) -> Question | None:
    example = items.examples[index]
    bos, closing = renderer.tokenizer.bos_token_id, renderer.closing_ids()
    response = renderer.response_ids(example["response"]) + closing
    texts = [renderer.response_ids(choice) for choice in example["choices"]] if answers else []
    longest = max([response, *(text + closing for text in texts)], key=len)
    prefix, shots = _prefix(renderer, items, example, length - len(longest))
    context = fit(prefix, longest, length, bos)
    if context is None:
        return None
    truncated, prompt = len(context) < len(prefix), []
    if answers and not texts:
        # Must not depend on the length of the reference, which the model is not told.
        prefix, prompt_shots = _prefix(renderer, items, example, length - new_tokens)
        fitted = fit(prefix, [], length - new_tokens, bos)
        if fitted is None:
            raise DataError(
                f"evaluation.max_new_tokens: {new_tokens} leaves no room for a prompt in {length} tokens; reduce it"
            )
        prompt, shots, truncated = fitted, min(shots, prompt_shots), truncated or len(fitted) < len(prefix)
    # Divided by a length, or compared with its own probability, a choice can be less likely than one that it begins.
    end_scored = items.task.section.choice_score == "sum" and one_begins_another(texts)
    return Question(
        example,
        index,
        [Request(context, response)],
        [Request(context, text + closing if end_scored else text) for text in texts],
        prompt,
        end_scored,
        truncated=truncated,
        fewer_shots=shots < items.shot_count,
    )


def _prefix(renderer: Renderer, items: EvaluationSet, example: Example, room: int) -> tuple[list[int], int]:
    """Return the tokens before the response, with as many shots as fit into `room`, and the number of these."""
    shots = items.shot_count
    prefix = renderer.prefix_ids(items.prompt_of(renderer, example, shots))
    while shots and len(prefix) > room:
        shots -= 1
        prefix = renderer.prefix_ids(items.prompt_of(renderer, example, shots))
    return prefix, shots


def _chat_question(renderer: Renderer, example: Example, index: int, length: int) -> Question | None:
    """Chats are scored by the loss of all their assistant turns."""
    bos = renderer.tokenizer.bos_token_id
    requests, truncated = [], False
    for context, reply in _chat_turns(renderer, example):
        fitted = fit(context, reply, length, bos)
        if fitted is None:
            return None
        truncated |= len(fitted) < len(context)
        requests.append(Request(fitted, reply))
    return Question(example, index, requests, truncated=truncated) if requests else None


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
