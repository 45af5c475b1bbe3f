"""Render the texts of an example as token ids, identically for training and evaluation.

A rendered example is a list of pieces, each trained on or not. A prompt with its response has two: the prefix (BOS and
the prompt in a template), which is everything the model sees before it answers, and the response with its end token,
which is trained on. A chat has such a pair for every assistant turn. Pieces are tokenized separately, so generation
starts from exactly the tokens seen in training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from multilora.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]


@dataclass(frozen=True)
class PlainTemplate:
    """A prompt format without a chat template: the text around the prompt, and the text that starts the response."""

    before: str
    after: str
    head: str = ""


PLAIN_TEMPLATES = {
    "instruction": PlainTemplate("### Instruction:\n", "\n\n### Response:\n"),
    "question": PlainTemplate("Question: ", "\nAnswer:", " "),
}
TEMPLATE_NAMES = ("auto", "chat", *PLAIN_TEMPLATES)


@dataclass(frozen=True)
class Piece:
    """A stretch of token ids, trained on or not."""

    ids: list[int]
    trained: bool


class Renderer:
    """Render examples with one tokenizer: one BOS (if the tokenizer has one) and one end token per response.

    Args:
        tokenizer: a transformers tokenizer
        template: `chat` (the tokenizer's chat template), a name in `PLAIN_TEMPLATES`, or `auto`: the chat template if
            there is one, else `instruction`

    Raises:
        DataError: the tokenizer has no EOS token, `template` is `chat` and the tokenizer has no chat template, or the
            chat template drops the text of an assistant turn.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str = "auto",
        special_tokens: Literal["refuse", "allow"] = "refuse",
    ) -> None:
        self.tokenizer: Any = tokenizer
        self._special: re.Pattern[str] | None = None
        if special_tokens == "refuse":
            added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
            names = sorted({*added, *self.tokenizer.all_special_tokens} - {""}, key=len, reverse=True)
            self._special = re.compile("|".join(map(re.escape, names))) if names else None
        if self.tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no eos_token to end a response with; set one in its config")
        if template == "auto":
            template = "chat" if self.tokenizer.chat_template else "instruction"
        if template == "chat" and not self.tokenizer.chat_template:
            raise DataError(
                "data.template is `chat`, and the tokenizer has no chat template; set its chat_template, or use "
                f"{' or '.join(PLAIN_TEMPLATES)}"
            )
        self.template = template
        self.head, self.closing = self._response_frame()
        # The common end of all prefixes. Responses are tokenized after it, because some tokenizers treat the start of
        # a text differently (SentencePiece adds a space).
        self.context = self.prefix_text("0123456789").rpartition("0123456789")[2]
        self._context_ids = self._ids(self.context)

    @property
    def has_chat_template(self) -> bool:
        """Whether the chat template of the tokenizer is used."""
        return self.template == "chat"

    def prefix_text(self, prompt: str) -> str:
        """Return the text before the response, without BOS unless the chat template writes it."""
        if self.has_chat_template:
            return self._chat([{"role": "user", "content": prompt}], add_generation_prompt=True)
        plain = PLAIN_TEMPLATES[self.template]
        return plain.before + prompt.removesuffix(plain.after) + plain.after  # some prompts end with `Answer:` too

    def with_shots(self, shots: Sequence[tuple[str, str]], prompt: str) -> str:
        """Return a prompt that begins with solved examples, for few-shot evaluation.

        A plain template is repeated for each example. With a chat template, all are in the same turn of the user.

        Args:
            shots: prompt and response of each example
            prompt: the question that follows them
        """
        if self.has_chat_template:
            texts = [question + (" " if question.endswith(":") else "\n") + answer for question, answer in shots]
            return "\n\n".join([*texts, prompt])
        plain = PLAIN_TEMPLATES[self.template]
        frame = f"\n\n{plain.before}"
        texts = [question.removesuffix(plain.after) + plain.after + plain.head + answer for question, answer in shots]
        return frame.join([*texts, prompt])

    def check_text(self, text: str) -> None:
        """Refuse text of the data that the tokenizer would read as a control token.

        Raises:
            DataError: names the token and how to allow it.
        """
        match = self._special.search(text) if self._special else None
        if match:
            start = max(match.start() - 20, 0)
            raise DataError(
                f"the text {text[start : match.end() + 20]!r} contains {match[0]!r}, which would become the special "
                "token; remove it from the data, or set data.special_tokens to allow"
            )

    def prefix_ids(self, prompt: str) -> list[int]:
        """Return the token ids of BOS and prompt, from which generation starts."""
        self.check_text(prompt)
        return self._with_bos(self._ids(self.prefix_text(prompt)))

    def response_ids(self, response: str) -> list[int]:
        """Return the token ids of a response, without its end token."""
        self.check_text(response)
        return self._continuation(self.head + response)

    def closing_ids(self) -> list[int]:
        """Return the token ids that end a response: EOS, or the end of turn of the chat template."""
        return self._ids(self.closing)

    def example_pieces(self, prompts: Sequence[str], responses: Sequence[str]) -> list[list[Piece]]:
        """Return prefix and response of each example. One tokenizer call for all is several times faster."""
        if not prompts:
            return []
        prefixes = self.tokenizer([self.prefix_text(prompt) for prompt in prompts], add_special_tokens=False)
        distinct = list(dict.fromkeys(responses))  # choice tasks repeat their responses
        closing = self.closing_ids()
        response_ids = dict(zip(distinct, self._continuations([self.head + text for text in distinct]), strict=True))
        return [
            [Piece(self._with_bos(prefix), False), Piece(response_ids[response] + closing, True)]
            for prefix, response in zip(prefixes["input_ids"], responses, strict=True)
        ]

    def chat_pieces(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[Piece]:
        """Render a chat; the text and the end token of assistant turns are trained on.

        Raises:
            DataError: no assistant turn, or the template renders a turn differently once other turns follow, so its
                tokens cannot be located.
        """
        if not any(message.get("role") == "assistant" for message in messages):
            raise DataError("the messages contain no assistant turn, so no token would be trained on")
        for message in messages:
            if isinstance(message.get("content"), str):
                self.check_text(message["content"])
        texts = self._chat_texts(messages, tools) if self.has_chat_template else self._plain_chat_texts(messages, tools)
        pieces: list[Piece] = []
        for text, trained in texts:
            if text:  # empty before an assistant turn that opens the chat
                ids = self._continuation(text) if pieces else self._with_bos(self._ids(text))
                pieces.append(Piece(ids, trained))
        return pieces

    def answer_prefix_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a chat from which the next turn of the assistant is generated.

        Raises:
            DataError: the chat template rejects the messages.
        """
        if self.has_chat_template:
            return self._with_bos(self._ids(self._chat(messages, add_generation_prompt=True)))
        pieces = self.chat_pieces([*messages, {"role": "assistant", "content": ""}])
        return [token for piece in pieces[:-1] for token in piece.ids]

    def _chat_texts(self, messages: Sequence[Message], tools: Sequence[Any]) -> list[tuple[str, bool]]:
        options = {"tools": list(tools)} if tools else {}
        chat = self._chat(messages, **options)
        texts: list[tuple[str, bool]] = []
        start = 0  # of the text that is not in `texts` yet
        for index, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            before = self._chat(messages[:index], add_generation_prompt=True, **options)
            after = self._chat(messages[: index + 1], **options)
            if not (chat.startswith(before) and after.startswith(before) and chat.startswith(after.rstrip())):
                raise DataError(
                    f"the chat template renders turn {index} (assistant) differently once other turns follow, so its "
                    "tokens cannot be located; split the chat into several chats that end with an assistant turn"
                )
            closing_start = after.rfind(self.closing, len(before))
            if closing_start >= 0:
                response = after[len(before) : closing_start + len(self.closing)]
                end = len(before) + len(response)
            else:  # the template writes no end token
                response, end = after[len(before) :].rstrip() + self.closing, len(after.rstrip())
            texts += [(chat[start : len(before)], False), (response, True)]
            start = end
        return texts

    def _plain_chat_texts(self, messages: Sequence[Message], tools: Sequence[Any]) -> list[tuple[str, bool]]:
        plain = PLAIN_TEMPLATES[self.template]
        texts: list[tuple[str, bool]] = []
        prefix = ""
        for index, message in enumerate(messages):
            role, content = message.get("role"), message.get("content")
            if tools or message.get("tool_calls") or role == "tool" or not isinstance(content, str):
                raise DataError(
                    f"turn {index} ({role}) needs the tokenizer's chat template (tools or structured content), and "
                    f"data.template is `{self.template}`; use a tokenizer with a chat template and data.template `chat`"
                )
            if role == "assistant":
                texts += [(prefix, False), (plain.head + content.strip() + self.closing, True)]
                prefix = "\n\n"
            elif role == "user":
                prefix += plain.before + content.strip() + plain.after
            else:
                prefix += content.strip() + "\n\n"
        return texts

    def _chat(self, messages: Sequence[Message], **options: Any) -> str:
        if not messages:
            return ""
        try:
            text: str = self.tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(f"the tokenizer's chat template rejects these messages: {error}") from None
        return text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _continuation(self, text: str) -> list[int]:
        return self._continuations([text])[0]

    def _continuations(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts that follow other text; if a merge crosses the boundary, those of the text alone."""
        size = len(self._context_ids)
        with_context = self.tokenizer([self.context + text for text in texts], add_special_tokens=False)["input_ids"]
        return [
            ids[size:] if ids[:size] == self._context_ids else self._ids(text)
            for ids, text in zip(with_context, texts, strict=True)
        ]

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def _response_frame(self) -> tuple[str, str]:
        """Return what the template writes before and after a response, up to the special token that ends the turn."""
        if not self.has_chat_template:
            return PLAIN_TEMPLATES[self.template].head, self.tokenizer.eos_token
        probe = "0123456789"
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": probe}]
        text = self._chat(messages)
        before = self._chat(messages[:1], add_generation_prompt=True)
        if probe not in text:
            raise DataError(
                "the tokenizer's chat template drops the text of assistant turns; fix or clear its chat_template"
            )
        start, _, tail = text.rpartition(probe)
        head = start[len(before) :] if start.startswith(before) else ""
        special = [token for token in self.tokenizer.all_special_tokens if token in tail]
        if not special:
            return head, str(tail.rstrip() + self.tokenizer.eos_token)
        first = min(special, key=tail.index)
        return head, str(tail[: tail.index(first) + len(first)])
