"""A model that is ready to generate text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from multilora.data.render import Message
from multilora.errors import InputError
from multilora.evaluation.generation.generate import generate
from multilora.evaluation.generation.stops import OnText
from multilora.inference.options import GenerationOptions
from multilora.inference.prompts import Prompt, Prompts
from multilora.modeling import max_positions


@dataclass(frozen=True)
class Answer:
    """What a model generated for a prompt; as a string, its text.

    prompt: the text or the messages that were answered
    text: without the stop that ended it
    model: label of the model
    prompt_tokens, tokens: length of the rendered prompt and of the response, with the token that ended it
    finish_reason: `stop` if the model ended the response, `length` if it reached its maximum length
    """

    prompt: str | list[Message]
    text: str
    model: str
    prompt_tokens: int
    tokens: int
    finish_reason: Literal["stop", "length"]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class TextModel:
    """A loaded model with its prompts.

    label: its name in output
    model: a causal language model, on its device
    prompts: renders what it is asked
    base: name or path of the base; None for a model without an adapter
    without_adapter: generate with the adapter of `model` disabled, as the base
    """

    label: str
    model: Any
    prompts: Prompts
    base: str | None = None
    without_adapter: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What is worth knowing about it, by name."""
        return {
            "model": self.label,
            "base": self.base,
            "device": self.model.device,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "prompts": self.prompts.template,
        }

    def generate(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions | None = None,
        on_text: OnText | None = None,
    ) -> list[Answer]:
        """Answer prompts, in batches.

        Args:
            prompts: each a text, or messages that end with a turn of the user
            options: by default, `GenerationOptions()`
            on_text: called with the index of a prompt, the next part of its answer, and whether it is the last part

        Raises:
            InputError: an option is out of range, or a prompt is empty or too long for the model.
            RunError: the device has too little memory.
        """
        options = options or GenerationOptions()
        rendered = [self.prompts.ids(prompt) for prompt in prompts]
        limits = [self._limit(number, len(ids), options) for number, ids in enumerate(rendered, 1)]
        with self._adapter():
            results = generate(
                self.model,
                self.prompts.tokenizer,
                rendered,
                stop_ids=self.prompts.stop_ids | _config_stop_ids(self.model),
                stop_strings=options.stop,
                max_new_tokens=limits,
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=options.top_k,
                repetition_penalty=options.repetition_penalty,
                seed=options.seed,
                on_text=on_text,
                advance=lambda *_, **__: None,
            )
        return [
            Answer(
                prompt if isinstance(prompt, str) else list(prompt),
                result.text,
                self.label,
                len(ids),
                result.tokens,
                "stop" if result.finished else "length",
            )
            for prompt, ids, result in zip(prompts, rendered, results, strict=True)
        ]

    def _limit(self, number: int, tokens: int, options: GenerationOptions) -> int:
        """The maximum length of a response: a prompt and its response fit into the positions of the model."""
        positions = max_positions(self.model.config)
        if positions is None:
            return options.max_new_tokens
        if tokens >= positions:
            raise InputError(
                f"prompt {number} has {tokens} tokens, and {self.label} has {positions} positions for prompt and "
                "response; shorten it (in a chat, start again with /reset)"
            )
        return min(options.max_new_tokens, positions - tokens)

    def _adapter(self) -> AbstractContextManager[Any]:
        return self.model.disable_adapter() if self.without_adapter else nullcontext()


def _config_stop_ids(model: Any) -> set[int]:
    """The tokens that end a response by the model's own config, such as the end of a turn of a chat model."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ends is None:
        return set()
    return set(ends) if isinstance(ends, list) else {int(ends)}
