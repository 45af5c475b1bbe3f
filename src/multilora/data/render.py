"""From an example's texts to token ids, the same way for training and evaluation.

A rendered example is a list of pieces, some of them trained on. For a prompt and its response these are two: the prefix
(BOS, the prompt in a template) is all the model sees before it answers, the response is what it learns, with the
token that ends it. A chat has such a pair for every assistant turn. Pieces are tokenised one by one, so that generation
starts from exactly the tokens that training saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from multilora.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]


@dataclass(frozen=True)
class PlainTemplate:
    """A form for prompts without a chat template: what stands around them, and what begins the response."""

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
    """Renders examples with one tokenizer. One BOS (if the tokenizer has one), one end token per response.

    Args:
        tokenizer: a transformers tokenizer
        template: `chat` (the tokenizer's), a name in `PLAIN_TEMPLATES`, or `auto`: the chat template if there is one,
            else `instruction`

    Raises:
        DataError: the tokenizer has no end token, `chat` is asked for and it has no chat template, or that template
            does not keep the answer at the end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "auto") -> None:
        self.tokenizer: Any = tokenizer
        if self.tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no eos_token, so a response could not end; set one in its config")
        if template == "auto":
            template = "chat" if self.tokenizer.chat_template else "instruction"
        if template == "chat" and not self.tokenizer.chat_template:
            raise DataError(
                "data.template is `chat`, and the tokenizer has no chat template; set its chat_template, or use "
                f"{' or '.join(PLAIN_TEMPLATES)}"
            )
        self.template = template
        self.head, self.closing = self._response_frame()
        # What every prefix ends with: a response is tokenised behind it, so that a tokenizer that begins a text in a
        # way of its own (SentencePiece's leading space) does not do so in the middle.
        self.context = self.prefix_text("0123456789").rpartition("0123456789")[2]
        self._context_ids = self._ids(self.context)

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer's chat template is used."""
        return self.template == "chat"

    def prefix_text(self, prompt: str) -> str:
        """The text before the response, without BOS unless the chat template writes it."""
        if self.has_chat_template:
            return self._chat([{"role": "user", "content": prompt}], add_generation_prompt=True)
        form = PLAIN_TEMPLATES[self.template]
        return form.before + prompt + form.after

    def prefix_ids(self, prompt: str) -> list[int]:
        """Token ids of BOS and prompt: where generation starts."""
        return self._with_bos(self._ids(self.prefix_text(prompt)))

    def response_ids(self, response: str) -> list[int]:
        """Token ids of a response without its end."""
        return self._continuation(self.head + response)

    def closing_ids(self) -> list[int]:
        """Token ids that end a response: EOS, or the chat template's end of turn."""
        return self._ids(self.closing)

    def example_pieces(self, prompts: Sequence[str], responses: Sequence[str]) -> list[list[Piece]]:
        """Prefix and response of each example; the tokenizer is called once for all, which is several times faster."""
        if not prompts:
            return []
        prefixes = self.tokenizer([self.prefix_text(prompt) for prompt in prompts], add_special_tokens=False)
        distinct = list(dict.fromkeys(responses))  # answers to choices repeat
        closing = self.closing_ids()
        said = dict(zip(distinct, self._continuations([self.head + text for text in distinct]), strict=True))
        return [
            [Piece(self._with_bos(prefix), False), Piece(said[response] + closing, True)]
            for prefix, response in zip(prefixes["input_ids"], responses, strict=True)
        ]

    def chat_pieces(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[Piece]:
        """The turns of a chat; what an assistant says and the end of its turn is trained on.

        Raises:
            DataError: no assistant turn, or the template renders a turn differently once others follow, so that what
                the assistant says cannot be told apart.
        """
        if not any(message.get("role") == "assistant" for message in messages):
            raise DataError("the messages hold no assistant turn, so no token would be trained on")
        texts = self._chat_texts(messages, tools) if self.has_chat_template else self._plain_chat_texts(messages, tools)
        pieces = []
        for number, (text, trained) in enumerate(texts):
            if not text:
                continue
            ids = self._with_bos(self._ids(text)) if number == 0 else self._ids(text, middle=True)
            pieces.append(Piece(ids, trained))
        return pieces

    def _chat_texts(self, messages: Sequence[Message], tools: Sequence[Any]) -> list[tuple[str, bool]]:
        options = {"tools": list(tools)} if tools else {}
        whole = self._chat(messages, **options)
        texts: list[tuple[str, bool]] = []
        done = 0
        for number, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            before = self._chat(messages[:number], add_generation_prompt=True, **options)
            after = self._chat(messages[: number + 1], **options)
            if not (whole.startswith(before) and after.startswith(before) and whole.startswith(after.rstrip())):
                raise DataError(
                    f"the chat template renders turn {number} (assistant) differently once other turns follow, so its "
                    "tokens cannot be told apart; split the chat into several that end with an assistant's turn"
                )
            end = after.rfind(self.closing, len(before))
            if end >= 0:
                said = after[len(before) : end + len(self.closing)]
                stop = len(before) + len(said)
            else:  # the template writes no end of its own
                said, stop = after[len(before) :].rstrip() + self.closing, len(after.rstrip())
            texts += [(whole[done : len(before)], False), (said, True)]
            done = stop
        return texts

    def _plain_chat_texts(self, messages: Sequence[Message], tools: Sequence[Any]) -> list[tuple[str, bool]]:
        form = PLAIN_TEMPLATES[self.template]
        texts: list[tuple[str, bool]] = []
        waiting = ""
        for number, message in enumerate(messages):
            role, content = message.get("role"), message.get("content")
            if tools or message.get("tool_calls") or role == "tool" or not isinstance(content, str):
                raise DataError(
                    f"turn {number} ({role}) needs the tokenizer's chat template (tools or structured content), and "
                    f"data.template is `{self.template}`; use a tokenizer that has one"
                )
            if role == "assistant":
                texts += [(waiting, False), (form.head + content.strip() + self.closing, True)]
                waiting = "\n\n"
            elif role == "user":
                waiting += form.before + content.strip() + form.after
            else:
                waiting += content.strip() + "\n\n"
        return texts

    def _chat(self, messages: Sequence[Message], **options: Any) -> str:
        if not messages:
            return ""
        try:
            text: str = self.tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(f"the tokenizer's chat template refuses these messages: {error}") from None
        return text

    def _ids(self, text: str, *, middle: bool = False) -> list[int]:
        if middle:
            return self._continuation(text)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _continuation(self, text: str) -> list[int]:
        return self._continuations([text])[0]

    def _continuations(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that stand behind other text; merges across the border are left out."""
        size = len(self._context_ids)
        together = self.tokenizer([self.context + text for text in texts], add_special_tokens=False)["input_ids"]
        return [
            ids[size:] if ids[:size] == self._context_ids else self._ids(text)
            for ids, text in zip(together, texts, strict=True)
        ]

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def _response_frame(self) -> tuple[str, str]:
        """What stands before and after an answer: the template's own text, up to the special token that ends a turn."""
        if not self.has_chat_template:
            return PLAIN_TEMPLATES[self.template].head, self.tokenizer.eos_token
        probe = "0123456789"
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": probe}]
        text = self._chat(messages)
        before = self._chat(messages[:1], add_generation_prompt=True)
        if probe not in text:
            raise DataError(
                "the tokenizer's chat template does not keep an assistant's text; clear or mend chat_template"
            )
        start, _, tail = text.rpartition(probe)
        head = start[len(before) :] if start.startswith(before) else ""
        special = [token for token in self.tokenizer.all_special_tokens if token in tail]
        if not special:
            return head, str(tail.rstrip() + self.tokenizer.eos_token)
        first = min(special, key=tail.index)
        return head, str(tail[: tail.index(first) + len(first)])
