"""Token ids of prompts and chats, from which a model continues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from multilora.data.render import TEMPLATE_NAMES, Message, Renderer
from multilora.errors import InputError

RAW = "raw"
NAMES = (*TEMPLATE_NAMES, RAW)
# What a model is asked: the text of one turn of the user, or a chat.
Prompt = str | Sequence[Message]


class Prompts:
    """Renders prompts with one tokenizer.

    Args:
        tokenizer: of the model
        template: of a recipe's `data.template` (`chat`, `instruction`, `question`, `auto`), or `raw` for the bare text.
            `auto` is the chat template if the tokenizer has one, else `instruction`
        system: text of the system's turn of every chat; None for none

    Raises:
        InputError: the tokenizer has no such template, or a system text is given for `raw`.
    """

    def __init__(self, tokenizer: Any, template: str = "auto", system: str | None = None) -> None:
        if template not in NAMES:
            raise InputError(f"template is {template!r}, expected one of {', '.join(NAMES)}")
        if template == RAW and system is not None:
            raise InputError("a system text needs a template, and the prompts are raw text; leave one of them out")
        self.tokenizer, self.system = tokenizer, system
        self._renderer = None if template == RAW else Renderer(tokenizer, template, special_tokens="allow")

    @property
    def template(self) -> str:
        """Name of the template that is used."""
        return RAW if self._renderer is None else self._renderer.template

    @property
    def stop_ids(self) -> set[int]:
        """Tokens that end a response."""
        ids = {self.tokenizer.eos_token_id} - {None}
        return ids if self._renderer is None else {*ids, self._renderer.closing_ids()[-1]}

    def ids(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt.

        A single turn of the user is rendered as a prompt is in training; a chat as a chat is.

        Args:
            prompt: text, or messages that end with a turn of the user

        Raises:
            InputError: there is nothing to answer, the prompts are raw and this is a chat, or the chat template
                rejects the messages.
        """
        if self._renderer is None:
            if not isinstance(prompt, str):
                raise InputError(f"a chat of {len(prompt)} messages needs a template, and the prompts are raw text")
            ids: list[int] = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            bos = self.tokenizer.bos_token_id
            ids = ids if bos is None or ids[:1] == [bos] else [bos, *ids]
            if not ids:
                raise InputError("the prompt is empty; give at least one character")
            return ids
        if isinstance(prompt, str) and self.system is None:
            return self._renderer.prefix_ids(prompt)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if not messages or messages[-1].get("role") != "user":
            role = messages[-1].get("role") if messages else None
            raise InputError(f"the chat ends with a turn of {role!r}, expected one of 'user', which is answered")
        if self.system is not None:
            messages = [{"role": "system", "content": self.system}, *messages]
        return self._renderer.answer_prefix_ids(messages)
