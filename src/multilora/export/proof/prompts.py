"""The token sequences on which an export is compared with the original."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from multilora.data.render import Piece, Renderer
from multilora.data.tokenize import TokenizeOptions, fit_pieces, row_length
from multilora.errors import DataError
from multilora.example import Example
from multilora.export.proof.outputs import NEW_TOKENS
from multilora.modeling import load_model_config, max_positions
from multilora.recipe import Recipe, TaskSection
from multilora.runs.directory import Run
from multilora.tasks.make import make_task

logger = logging.getLogger(__name__)

PER_TASK = 3  # examples
SEARCHED = 50  # examples of a task that are tried until `PER_TASK` of them fit
TOKENS = 256  # at most, of each example; of longer ones, the prompt loses its start
RANDOM_PROMPTS, RANDOM_TOKENS = 4, 32
SEED = 0


@dataclass(frozen=True)
class Prompt:
    """Token ids and what to do with them.

    source: where they come from: `task 'boolq', example 0` or `random tokens 0`
    ids: of the prompt and, unless random, its response
    task: name of the task, or `random tokens`
    start: number of tokens from whose end greedy text is compared; 0 for none
    trained: indices of the trained tokens, whose loss is compared
    random: whether the ids are random
    """

    source: str
    ids: list[int]
    task: str
    start: int = 0
    trained: tuple[int, ...] = ()
    random: bool = False


def run_prompts(run: Run) -> list[Prompt]:
    """Return the first training examples of every task of a run, rendered as in training.

    Tasks whose data cannot be loaded are left out with a warning; if none is left, the token ids are random.
    """
    recipe = run.recipe
    config = load_model_config(recipe.model)
    renderer = Renderer(run.load_tokenizer(), recipe.data.template, recipe.data.special_tokens)
    length, positions = row_length(recipe.data.max_length, config), max_positions(config)
    prompts: list[Prompt] = []
    for section in recipe.tasks:
        try:
            prompts += _task_prompts(recipe, section, renderer, length, positions)
        except Exception as error:  # the export is correct without the data, and a task may raise anything
            logger.warning(
                "task %r: its data cannot be loaded, so the export is not compared on it (%s)",
                section.name,
                " ".join(str(error).split())[:300],
            )
    return prompts or random_prompts(config.get_text_config().vocab_size, positions)


def random_prompts(vocab_size: int, positions: int | None) -> list[Prompt]:
    """Return token ids drawn with a fixed seed."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (RANDOM_PROMPTS, min(RANDOM_TOKENS, positions or RANDOM_TOKENS))
    rows = torch.randint(vocab_size, shape, generator=generator).tolist()
    return [
        Prompt(f"random tokens {index}", row, "random tokens", _start(len(row) // 2, positions), random=True)
        for index, row in enumerate(rows)
    ]


def _task_prompts(
    recipe: Recipe, section: TaskSection, renderer: Renderer, length: int, positions: int | None
) -> list[Prompt]:
    data = recipe.data
    options = TokenizeOptions(length, data.loss_on, data.overlong, data.cut_responses)
    bos = renderer.tokenizer.bos_token_id
    prompts: list[Prompt] = []
    examples: Any = make_task(section).load("train")
    for index, example in enumerate(islice(examples, SEARCHED)):
        fitted = fit_pieces(_pieces(renderer, example), options, bos)
        if fitted is not None:
            prompts.append(_prompt(section.name, index, fitted[0], bos, positions))
        if len(prompts) == PER_TASK:
            break
    if not prompts:
        raise DataError(f"none of the first {SEARCHED} examples fits into {length} tokens; raise data.max_length")
    return prompts


def _prompt(task: str, number: int, pieces: Sequence[Piece], bos: int | None, positions: int | None) -> Prompt:
    fitted = fit_pieces(pieces, TokenizeOptions(TOKENS, cut_responses=True), bos)
    ids: list[int] = []
    trained: list[int] = []
    for piece in pieces if fitted is None else fitted[0]:
        if piece.trained:
            trained += range(max(len(ids), 1), len(ids) + len(piece.ids))  # nothing predicts the first token
        ids += piece.ids
    trained = [index for index in trained if index < TOKENS]
    start = _start(trained[0] if trained else 0, positions)
    return Prompt(f"task {task!r}, example {number}", ids[:TOKENS], task, start, tuple(trained))


def _start(start: int, positions: int | None) -> int:
    """Return where greedy text starts, early enough that it ends within the positions of the model."""
    return start if positions is None else max(0, min(start, positions - NEW_TOKENS))


def _pieces(renderer: Renderer, example: Example) -> Sequence[Piece]:
    if example["messages"]:
        tools = json.loads(example["tools"]) if example["tools"] else []
        return renderer.chat_pieces(json.loads(example["messages"]), tools)
    return renderer.example_pieces([example["prompt"]], [example["response"]])[0]
