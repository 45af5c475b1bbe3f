"""A task's examples as token ids in a memory-mapped cache, with everything that had to be cut or left out counted."""

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

# Part of every cache key: raise it whenever the same example would become other tokens.
VERSION = 2
WHOLE, TRUNCATED, CUT = 0, 1, 2
DEFAULT_MAX_LENGTH = 1024


@dataclass(frozen=True)
class TokenizeOptions:
    """What decides on the tokens of an example, besides tokenizer and template; see the recipe's `data:` section."""

    max_length: int
    loss_on: str = "responses"
    overlong: str = "truncate_prompt"
    cut_responses: bool = False


@dataclass(frozen=True)
class TokenizedTask:
    """The tokens of one task's split.

    dataset columns: input_ids; spans (flat [start, end, start, end, ...] of what is trained on); length and
    trained_tokens (counts); state (`WHOLE`, `TRUNCATED`, `CUT`); example (row in the task's own dataset).
    truncated: prompts that lost their start; cut: responses that lost their end; dropped: examples left out because
    they do not fit; dropped_in_source: reason -> records that the task itself left out.
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
        """A column of numbers, [examples]."""
        return _column(self.dataset, name)


def _column(dataset: Dataset, name: str) -> npt.NDArray[np.int64]:
    # From Arrow at once; by way of rows it takes minutes for a million.
    return np.asarray(dataset.data.column(name).to_numpy(), dtype=np.int64)


def row_length(max_length: int | None, config: Any) -> int:
    """Tokens of a row: the recipe's `data.max_length`, else the model's positions but at most 1024.

    Raises:
        RecipeError: more than the model has positions.
    """
    positions = max_positions(config) or DEFAULT_MAX_LENGTH
    if max_length is not None and max_length > positions:
        raise RecipeError(
            [f"data.max_length: {max_length} is more than the {positions} positions of the model; use at most these"]
        )
    return max_length or min(positions, DEFAULT_MAX_LENGTH)


def fit(prefix: list[int], response: list[int], max_length: int, bos: int | None) -> list[int] | None:
    """The prefix cut from its left (after BOS) until both fit; None if the response alone does not."""
    room = max_length - len(response)
    if len(prefix) <= room:
        return prefix
    has_bos = bos is not None and prefix[0] == bos
    if room < 1 + has_bos:
        return None
    return [*prefix[:has_bos], *prefix[len(prefix) - room + has_bos :]]


def fit_pieces(pieces: Sequence[Piece], options: TokenizeOptions, bos: int | None) -> tuple[list[Piece], int] | None:
    """The pieces within `max_length`, and what was done to them (`WHOLE`, `TRUNCATED`, `CUT`); None: they do not fit.

    Only what stands before the first response is shortened, from its left; a response loses its end only with
    `cut_responses`.
    """
    total = sum(len(piece.ids) for piece in pieces)
    if total <= options.max_length:
        return list(pieces), WHOLE
    first, *rest = pieces
    if options.overlong == "truncate_prompt" and not first.trained:
        after = [token for piece in rest for token in piece.ids]
        fitted = fit(first.ids, after, options.max_length, bos)
        if fitted is not None:
            return [Piece(fitted, False), *rest], TRUNCATED
    if not options.cut_responses:
        return None
    # Half the room for what comes before, so that some of the response is left.
    state_pieces = list(pieces)
    if not first.trained and options.overlong == "truncate_prompt":
        fitted = fit(first.ids, [], max(options.max_length // 2, 2), bos)
        state_pieces[0] = Piece(first.ids if fitted is None else fitted, False)
    kept: list[Piece] = []
    room = options.max_length
    for piece in state_pieces:
        kept.append(Piece(piece.ids[:room], piece.trained))
        room -= len(kept[-1].ids)
    return (kept, CUT) if any(piece.trained and piece.ids for piece in kept) else None


def _row(pieces: Sequence[Piece], everything: bool) -> dict[str, Any]:
    ids: list[int] = []
    spans: list[int] = []
    for piece in pieces:
        start = len(ids)
        ids += piece.ids
        # The first token of an example has nothing before it to be predicted from.
        start = max(start, 1)
        if (piece.trained or everything) and start < len(ids):
            if spans and spans[-1] == start:
                spans[-1] = len(ids)
            else:
                spans += [start, len(ids)]
    trained = sum(spans[1::2]) - sum(spans[::2])
    return {"input_ids": ids, "spans": spans, "length": len(ids), "trained_tokens": trained}


class _Tokenizer:
    """One batch of examples to rows; a class, so that it can be sent to other processes."""

    def __init__(self, name: str, renderer: Renderer, options: TokenizeOptions) -> None:
        self.name, self.renderer, self.options = name, renderer, options

    def __call__(self, batch: dict[str, list[Any]], positions: list[int]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {
            name: [] for name in ("input_ids", "spans", "length", "trained_tokens", "state", "example")
        }
        bos = self.renderer.tokenizer.bos_token_id
        for position, pieces in zip(positions, self._pieces(batch, positions), strict=True):
            fitted = fit_pieces(pieces, self.options, bos)
            if fitted is None:
                continue
            pieces, state = fitted
            row = {**_row(pieces, self.options.loss_on == "all"), "state": state, "example": position}
            for key, value in row.items():
                rows[key].append(value)
        return rows

    def _pieces(self, batch: dict[str, list[Any]], positions: list[int]) -> list[list[Piece]]:
        chats = batch.get("messages") or [""] * len(positions)
        tools = batch.get("tools") or [""] * len(positions)
        plain = [place for place, chat in enumerate(chats) if not chat]
        for place in plain:
            if not batch["response"][place].strip():
                raise DataError(
                    f"task {self.name!r}, example {positions[place]}: the response is empty, so no token would be "
                    "trained on; remove the record or mend its template"
                )
        made = self.renderer.example_pieces(
            [batch["prompt"][place] for place in plain], [batch["response"][place] for place in plain]
        )
        pieces = dict(zip(plain, made, strict=True))
        for place, chat in enumerate(chats):
            if chat:
                try:
                    described = json.loads(tools[place]) if tools[place] else []
                    pieces[place] = self.renderer.chat_pieces(json.loads(chat), described)
                except DataError as error:
                    raise DataError(f"task {self.name!r}, example {positions[place]}: {error}") from None
        return [pieces[place] for place in range(len(positions))]


def tokenize_task(
    name: str,
    examples: Dataset,
    renderer: Renderer,
    options: TokenizeOptions,
    *,
    num_proc: int = 1,
    dropped_in_source: dict[str, int] | None = None,
) -> TokenizedTask:
    """Tokenise a split, or take it from the cache (under `datasets`' own cache folder).

    Args:
        name: of the task
        examples: from `Task.load`
        renderer: tokenizer and template
        options: lengths and what is trained on
        num_proc: processes; small splits are done by one
        dropped_in_source: what `Task.load` left out, to be reported on

    Raises:
        DataError: a response is empty (there would be nothing to train on), or no example is left.
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
    disable_progress_bars()  # the plan shows its own
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
        # Other processes hand errors over wrapped or copied.
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
        reason = f"all {dropped} are longer than max_length {options.max_length}" if dropped else "the source is empty"
        raise DataError(f"task {name!r}: no examples ({reason})")
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
    """A name for the tokens of these examples under this tokenizer, template and options."""
    tokenizer = renderer.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return cache_key(
        VERSION,
        examples._fingerprint,
        described,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        renderer.template,
        asdict(options),
    )
