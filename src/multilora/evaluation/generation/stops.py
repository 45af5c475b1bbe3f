"""Where a generated response ends: at a stop token, at a stop string or at its limit of tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from multilora.evaluation.requests import Generation

# The left edge of a decoded window differs from the full text by less: a broken character, a space.
_EDGE = 8
_BROKEN = "\N{REPLACEMENT CHARACTER}"

# Called with the index of a prompt, the next part of its response, and whether that is the last part.
OnText = Callable[[int, str, bool], None]


@dataclass
class Row:
    """A prompt and what was generated for it so far.

    Attributes:
        index: of the prompt
        ids: tokens of the prompt, then the generated ones
        prompt: number of tokens of the prompt
        limit: maximum number of generated tokens
        draws: one random number in [0, 1) per generated token; empty if greedy
        result: None until it is finished
    """

    index: int
    ids: list[int]
    prompt: int
    limit: int
    draws: list[float] = field(default_factory=list)
    result: Generation | None = None

    @property
    def room(self) -> int:
        """Number of tokens that can still be generated."""
        return self.limit - (len(self.ids) - self.prompt)

    def restart(self) -> None:
        """Forget what was generated."""
        del self.ids[self.prompt :]
        self.result = None

    def draw(self) -> float:
        """The random number for the next token."""
        return self.draws[len(self.ids) - self.prompt]


class Stops:
    """Decide when rows end, and decode them.

    Few tokens can complete a stop string: those whose text has the last character of one. Only after these is the end
    of a row decoded.

    Args:
        tokenizer: of the model
        ids: tokens that end a response
        strings: texts that end a response; the text of a special token stands for that token
    """

    def __init__(self, tokenizer: Any, ids: Collection[int], strings: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._strings = [string for string in strings if string]
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=False))
        self.ids = {*ids, *(special[string] for string in self._strings if string in special)}
        self._last_characters = {string[-1] for string in self._strings}
        self._longest = max(map(len, self._strings), default=0)
        self._anchor = tokenizer.encode("a", add_special_tokens=False)
        # Token -> number of characters if it can complete a stop string, else 0.
        self._completing: dict[int, int] = {}

    def add(self, row: Row, token: int) -> bool:
        """Append a token to a row; return whether the row is finished, and then set its result."""
        row.ids.append(token)
        if token in self.ids:
            row.result = self._result(row, row.ids[row.prompt : -1], finished=True)
        elif self._strings and self._completes(row.ids, row.prompt, token):
            row.result = self._result(row, row.ids[row.prompt :], finished=True)
        elif row.room <= 0:
            row.result = self._result(row, row.ids[row.prompt :], finished=False)
        return row.result is not None

    def _result(self, row: Row, generated: list[int], *, finished: bool) -> Generation:
        text = self._decode(generated)
        cut = self._first_stop(text)
        return Generation(text if cut < 0 else text[:cut], len(row.ids) - row.prompt, finished or cut >= 0)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _first_stop(self, text: str) -> int:
        starts = [start for string in self._strings if (start := text.find(string)) >= 0]
        return min(starts, default=-1)

    def _completes(self, ids: list[int], prompt: int, token: int) -> bool:
        """Whether the response `ids[prompt:]`, which ends with `token`, contains a stop string."""
        characters = self._completing.get(token)
        if characters is None:
            characters = self._completing[token] = self._characters(token)
        if not characters:
            return False
        needed = self._longest + characters + _EDGE
        window = needed  # tokens; most have a character or more, some have none
        while True:
            start = max(prompt, len(ids) - window)
            text = self._decode(ids[start:])
            if start == prompt:
                return self._first_stop(text) >= 0
            if len(text) >= needed:
                # The window's left edge may differ from the full text, so the full text decides.
                return self._first_stop(text) >= 0 and self._first_stop(self._decode(ids[prompt:])) >= 0
            window *= 2

    def _characters(self, token: int) -> int:
        alone, after = self._decode([token]), self._decode([*self._anchor, token])
        possible = self._last_characters & {*alone, *after} or _BROKEN in alone or _BROKEN in after
        return max(len(alone), len(after)) if possible else 0


class StreamedStops(Stops):
    """Stops that also pass the text on while it is generated.

    Characters of which a part is missing are kept back, and so is text that may be the start of a stop string.

    Args:
        tokenizer, ids, strings: see `Stops`
        on_text: see `OnText`
    """

    def __init__(self, tokenizer: Any, ids: Collection[int], strings: Sequence[str], on_text: OnText) -> None:
        super().__init__(tokenizer, ids, strings)
        self._on_text = on_text
        self._passed: dict[int, str] = {}

    def add(self, row: Row, token: int) -> bool:
        """See `Stops.add`."""
        finished = super().add(row, token)
        text = self._certain(self._decode(row.ids[row.prompt :])) if row.result is None else row.result.text
        passed = self._passed.get(row.index, "")
        new = text[len(passed) :] if text.startswith(passed) else ""
        if new or finished:
            self._passed[row.index] = passed + new
            self._on_text(row.index, new, finished)
        return finished

    def _certain(self, text: str) -> str:
        text = text.rstrip(_BROKEN)
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            if any(string.startswith(text[-size:]) for string in self._strings):
                return text[:-size]
        return text
