"""A conversation with models, each of which sees its own answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from multilora.data.render import Message
from multilora.inference.options import GenerationOptions
from multilora.inference.prompts import RAW
from multilora.inference.text_model import Answer, TextModel


class Chat:
    """A conversation. Raw text has no turns: with the template `raw`, every text is continued on its own.

    Args:
        models: that answer
        options: of generation
    """

    def __init__(self, models: Sequence[TextModel], options: GenerationOptions) -> None:
        self.models, self.options = models, options
        self.histories: list[list[Message]] = [[] for _ in models]

    def reset(self) -> None:
        """Forget all turns."""
        self.histories = [[] for _ in self.models]

    def ask(self, text: str, on_text: Callable[[str], None] | None = None) -> list[Answer]:
        """Let every model answer.

        An answer that is interrupted stays in the conversation as far as it was generated.

        Args:
            text: the user's turn
            on_text: called with the next part of an answer, one model after the other

        Raises:
            InputError: the conversation is too long for a model; it is left as it was.
        """
        return [self._ask_one(index, text, on_text) for index in range(len(self.models))]

    def _ask_one(self, index: int, text: str, on_text: Callable[[str], None] | None) -> Answer:
        model, history = self.models[index], self.histories[index]
        turn: Message = {"role": "user", "content": text}
        raw = model.prompts.template == RAW
        parts: list[str] = []

        def passed(_: int, part: str, __: bool) -> None:
            parts.append(part)
            if on_text is not None:
                on_text(part)

        try:
            (answer,) = model.generate([text if raw else [*history, turn]], self.options, passed)
        except KeyboardInterrupt:
            if parts and not raw:
                history += [turn, {"role": "assistant", "content": "".join(parts)}]
            raise
        if not raw:
            history += [turn, {"role": "assistant", "content": answer.text}]
        return answer
