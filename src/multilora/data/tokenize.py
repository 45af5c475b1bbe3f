"""Tokenize the examples of a task into a memory-mapped cache, and count everything that is truncated or dropped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from multilora.cache import cache_key, cache_root
from multilora.data.render import Piece, Renderer
from multilora.errors import DataError, RecipeError
from multilora.modeling import max_positions

if TYPE_CHECKING:
    from datasets import Dataset

# Part of every cache key: increase it whenever the same example would get different tokens.
VERSION = 4
COMPLETE, TRUNCATED, CUT = 0, 1, 2
DEFAULT_MAX_LENGTH = 1024


@dataclass(frozen=True)
class TokenizeOptions:
    """What determines the tokens of an example besides tokenizer and template; see `data:` in the recipe."""

    max_length: int
    loss_on: str = "responses"
    overlong: str = "truncate_prompt"
    cut_responses: bool = False


@dataclass(frozen=True)
class TokenizedTask:
    """The tokens of one split of a task.

    dataset: columns input_ids; spans (flat [start, end, start, end, ...] of the trained tokens); length and
    trained_tokens (counts); state (`COMPLETE`, `TRUNCATED`, `CUT`); example (index in the dataset of `Task.load`)
    truncated: number of prompts that lost their start
    cut: number of responses that lost their end
    dropped: number of examples that do not fit
    dropped_in_source: reason -> number of records dropped by the task
    """

    name: str
    dataset: Dataset
    truncated: int
    cut: int
    dropped: int
    dropped_in_source: dict[str, int]

    def __len__(self) -> int:
        return len(self.dataset)

    def column(self, name: str) -> npt.NDArray[np.int64]:
        """Return an integer column, [examples]."""
        return _column(self.dataset, name)


def _column(dataset: Dataset, name: str) -> npt.NDArray[np.int64]:
    # Straight from Arrow: row by row, a million examples take minutes.
    return np.asarray(dataset.data.column(name).to_numpy(), dtype=np.int64)


def row_length(max_length: int | None, config: Any) -> int:
    """Return the tokens of a row: `data.max_length` of the recipe, else the positions of the model, at most 1024.

    Raises:
        RecipeError: `max_length` exceeds the positions of the model.
    """
    positions = max_positions(config) or DEFAULT_MAX_LENGTH
    if max_length is not None and max_length > positions:
        raise RecipeError(
            [
                f"data.max_length: {max_length} is more than the {positions} positions of the model; set it to "
                f"{positions} or less"
            ]
        )
    return max_length or min(positions, DEFAULT_MAX_LENGTH)


def fit(prefix: list[int], response: list[int], max_length: int, bos: int | None) -> list[int] | None:
    """Cut the prefix from the left, after BOS, until both fit; return None if even the response does not fit."""
    room = max_length - len(response)
    if len(prefix) <= room:
        return prefix
    has_bos = bos is not None and prefix[0] == bos
    if room < 1 + has_bos:
        return None
    return [*prefix[:has_bos], *prefix[len(prefix) - room + has_bos :]]


def fit_pieces(pieces: Sequence[Piece], options: TokenizeOptions, bos: int | None) -> tuple[list[Piece], int] | None:
    """Shorten the pieces to `max_length`; return them with their state, or None if they do not fit.

    The text before the first response loses its start (`TRUNCATED`). Responses lose their end (`CUT`) only with
    `cut_responses`.
    """
    total = sum(len(piece.ids) for piece in pieces)
    if total <= options.max_length:
        return list(pieces), COMPLETE
    first, *rest = pieces
    if options.overlong == "truncate_prompt" and not first.trained:
        rest_ids = [token for piece in rest for token in piece.ids]
        fitted = fit(first.ids, rest_ids, options.max_length, bos)
        if fitted is not None:
            return [Piece(fitted, False), *rest], TRUNCATED
    if not options.cut_responses:
        return None
    # Limit the prefix to half of the row, so that part of the response remains.
    shortened = list(pieces)
    if not first.trained and options.overlong == "truncate_prompt":
        fitted = fit(first.ids, [], max(options.max_length // 2, 2), bos)
        shortened[0] = Piece(first.ids if fitted is None else fitted, False)
    kept: list[Piece] = []
    room = options.max_length
    for piece in shortened:
        kept.append(Piece(piece.ids[:room], piece.trained))
        room -= len(kept[-1].ids)
    return (kept, CUT) if any(piece.trained and piece.ids for piece in kept) else None


def _row(pieces: Sequence[Piece], loss_on_all: bool) -> dict[str, Any]:
    ids: list[int] = []
    spans: list[int] = []
    for piece in pieces:
        start = len(ids)
        ids += piece.ids
        # The first token of an example cannot be predicted from anything.
        start = max(start, 1)
        if (piece.trained or loss_on_all) and start < len(ids):
            if spans and spans[-1] == start:
                spans[-1] = len(ids)
            else:
                spans += [start, len(ids)]
    trained = sum(spans[1::2]) - sum(spans[::2])
    return {"input_ids": ids, "spans": spans, "length": len(ids), "trained_tokens": trained}


class _Tokenizer:
    """Turn a batch of examples into rows. A class, so that it can be pickled for other processes."""

    def __init__(self, name: str, renderer: Renderer, options: TokenizeOptions) -> None:
        self.name, self.renderer, self.options = name, renderer, options

    def __call__(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {
            name: [] for name in ("input_ids", "spans", "length", "trained_tokens", "state", "example")
        }
        bos = self.renderer.tokenizer.bos_token_id
        for index, pieces in zip(indices, self._pieces(batch, indices), strict=True):
            fitted = fit_pieces(pieces, self.options, bos)
            if fitted is None:
                continue
            pieces, state = fitted
            row = {**_row(pieces, self.options.loss_on == "all"), "state": state, "example": index}
            for key, value in row.items():
                rows[key].append(value)
        return rows

    def _pieces(self, batch: dict[str, list[Any]], indices: list[int]) -> list[list[Piece]]:
        chats = batch.get("messages") or [""] * len(indices)
        tools = batch.get("tools") or [""] * len(indices)
        plain = [i for i, chat in enumerate(chats) if not chat]
        for i in plain:
            where = f"task {self.name!r}, example {indices[i]}"
            if not batch["response"][i].strip():
                raise DataError(
                    f"{where}: the response is empty, so no token would be trained on; remove the record or fix its "
                    "template"
                )
            try:
                self.renderer.check_text(batch["prompt"][i])
                self.renderer.check_text(batch["response"][i])
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
        plain_pieces = self.renderer.example_pieces(
            [batch["prompt"][i] for i in plain], [batch["response"][i] for i in plain]
        )
        pieces = dict(zip(plain, plain_pieces, strict=True))
        for i, chat in enumerate(chats):
            if chat:
                try:
                    chat_tools = json.loads(tools[i]) if tools[i] else []
                    pieces[i] = self.renderer.chat_pieces(json.loads(chat), chat_tools)
                except DataError as error:
                    raise DataError(f"task {self.name!r}, example {indices[i]}: {error}") from None
        return [pieces[i] for i in range(len(indices))]


def tokenize_task(
    name: str,
    examples: Dataset,
    renderer: Renderer,
    options: TokenizeOptions,
    *,
    num_proc: int = 1,
    dropped_in_source: dict[str, int] | None = None,
) -> TokenizedTask:
    """Tokenize a split, or read it from the cache (inside the cache folder of `datasets`).

    Args:
        name: of the task
        examples: from `Task.load`
        renderer: tokenizer and template
        options: length limits, and which tokens are trained on
        num_proc: number of processes; small splits use one
        dropped_in_source: records dropped by `Task.load`, passed on to the result

    Raises:
        DataError: a response is empty, so nothing would be trained on, or no example fits.
    """
    from datasets import Features, List, Value, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    features = Features(
        {
            "input_ids": List(Value("int32")),
            "spans": List(Value("int32")),
            "length": Value("int32"),
            "trained_tokens": Value("int32"),
            "state": Value("int8"),
            "example": Value("int64"),
        }
    )
    key = tokens_key(examples, renderer, options)
    folder = cache_root()
    folder.mkdir(parents=True, exist_ok=True)
    quiet = are_progress_bars_disabled()
    disable_progress_bars()  # make_plan shows one for all tasks
    try:
        dataset = examples.map(
            _Tokenizer(name, renderer, options),
            batched=True,
            with_indices=True,
            remove_columns=examples.column_names,
            features=features,
            num_proc=num_proc if len(examples) >= 2000 * num_proc and num_proc > 1 else None,
            cache_file_name=str(folder / f"{key}.arrow"),
            new_fingerprint=key,
            desc=None,
        )
    except Exception as error:
        # Errors from worker processes arrive wrapped or copied.
        inner: BaseException | None = error
        while inner is not None and not isinstance(inner, DataError):
            inner = inner.__cause__
        if inner is None:
            raise
        raise inner from None
    finally:
        if not quiet:
            enable_progress_bars()
    if not len(dataset):
        dropped = len(examples)
        if not dropped:
            raise DataError(f"task {name!r}: no examples: the source is empty; remove the task, or give it data")
        raise DataError(
            f"task {name!r}: no examples: all {dropped:,} are longer than max_length {options.max_length}; raise "
            "data.max_length, or set data.cut_responses"
        )
    state = _column(dataset, "state")
    return TokenizedTask(
        name,
        dataset,
        truncated=int((state == TRUNCATED).sum()),
        cut=int((state == CUT).sum()),
        dropped=len(examples) - len(dataset),
        dropped_in_source=dict(dropped_in_source or {}),
    )


def tokens_key(examples: Dataset, renderer: Renderer, options: TokenizeOptions) -> str:
    """Return the cache key for these examples with this tokenizer, template and options."""
    tokenizer = renderer.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    definition = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return cache_key(
        VERSION,
        examples._fingerprint,
        definition,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        renderer.template,
        asdict(options),
    )
