"""From an example's texts to token ids, the same way for training and evaluation.

A rendered example is `prefix + response`: the prefix is all the model sees before it answers (BOS, the prompt in the
tokenizer's chat template or in `PLAIN_TEMPLATE`), the response is what it learns (the answer's tokens and the one that
ends it). Both are tokenised apart, so that generation starts from exactly the tokens that training saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from multilora.errors import DataError
from multilora.tasks.base import Example

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE = "### Instruction:\n{prompt}\n\n### Response:\n"


class Renderer:
    """Renders examples with one tokenizer. One BOS (if the tokenizer has one), one end token.

    Args:
        tokenizer: a transformers tokenizer; its chat template is used if it has one

    Raises:
        DataError: the tokenizer has no end token, or its chat template does not keep the answer at the end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer
        if self.tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no eos_token, so a response could not end; set one in its config")
        self.has_chat_template = bool(self.tokenizer.chat_template)
        self.closing = self._chat_closing() if self.has_chat_template else self.tokenizer.eos_token

    def prefix_text(self, prompt: str) -> str:
        """The text before the response, without BOS unless the chat template writes it."""
        if not self.has_chat_template:
            return PLAIN_TEMPLATE.format(prompt=prompt)
        messages = [{"role": "user", "content": prompt}]
        text: str = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text

    def prefix_ids(self, prompt: str) -> list[int]:
        """Token ids of BOS and prompt: where generation starts."""
        return self._with_bos(self._ids(self.prefix_text(prompt)))

    def response_ids(self, response: str) -> list[int]:
        """Token ids of a response without its end."""
        return self._ids(response)

    def closing_ids(self) -> list[int]:
        """Token ids that end a response: EOS, or the chat template's end of turn."""
        return self._ids(self.closing)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def _chat_closing(self) -> str:
        """What the chat template writes after an answer, up to its first special token: the end of the turn."""
        probe = "0123456789"
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": probe}]
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False)
        if probe not in text:
            raise DataError(
                "the tokenizer's chat template does not keep an assistant's text; clear or mend chat_template"
            )
        tail = text.rpartition(probe)[2]
        special = [token for token in self.tokenizer.all_special_tokens if token in tail]
        if not special:
            return str(tail.rstrip() + self.tokenizer.eos_token)
        first = min(special, key=tail.index)
        return str(tail[: tail.index(first) + len(first)])


@dataclass(frozen=True)
class TokenizedTask:
    """The tokens of one task's split.

    dataset columns: input_ids (prefix, response, end), prefix_length (the rest is trained on), example (row in the
    task's own dataset). truncated: prompts cut from the left; dropped: examples whose response alone is too long.
    """

    name: str
    dataset: Dataset
    truncated: int
    dropped: int

    def __len__(self) -> int:
        return len(self.dataset)


def fit(prefix: list[int], response: list[int], max_length: int, bos: int | None) -> list[int] | None:
    """The prefix cut from its left (after BOS) until both fit; None if the response alone does not."""
    room = max_length - len(response)
    if len(prefix) <= room:
        return prefix
    has_bos = bos is not None and prefix[0] == bos
    if room < 1 + has_bos:
        return None
    return [*prefix[:has_bos], *prefix[len(prefix) - room + has_bos :]]


def tokenize_task(name: str, examples: Dataset, renderer: Renderer, max_length: int) -> TokenizedTask:
    """Tokenise a split.

    Raises:
        DataError: a response is empty (there would be nothing to train on), or no example is left.
    """
    from datasets import Dataset, Features, List, Value

    rows: list[dict[str, Any]] = []
    truncated = dropped = 0
    closing = renderer.closing_ids()
    bos = renderer.tokenizer.bos_token_id
    for position, raw in enumerate(examples):
        example: Example = raw
        if not example["response"].strip():
            raise DataError(
                f"task {name!r}, example {position}: the response is empty, so no token would be trained on; "
                "remove the record or mend its template"
            )
        prefix = renderer.prefix_ids(example["prompt"])
        response = renderer.response_ids(example["response"]) + closing
        fitted = fit(prefix, response, max_length, bos)
        if fitted is None:
            dropped += 1
            continue
        truncated += len(fitted) < len(prefix)
        rows.append({"input_ids": fitted + response, "prefix_length": len(fitted), "example": position})
    if not rows:
        reason = f"all {dropped} are longer than max_length {max_length}" if dropped else "the source is empty"
        raise DataError(f"task {name!r}: no examples ({reason})")
    features = Features({"input_ids": List(Value("int32")), "prefix_length": Value("int32"), "example": Value("int32")})
    return TokenizedTask(name, Dataset.from_list(rows, features=features), truncated, dropped)
