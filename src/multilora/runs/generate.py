"""Text from a run, an adapter of any PEFT method, a base or an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from multilora.errors import InputError
from multilora.foreign_errors import own_errors
from multilora.inference.answers import answers_of
from multilora.inference.prompts import RAW, Prompt, Prompts
from multilora.inference.text_model import Answer, TextModel
from multilora.modeling import load_config
from multilora.recipe.schema import ModelSection
from multilora.runs.candidate import Candidate, candidate
from multilora.runs.directory import Run
from multilora.runs.with_base import with_base


@own_errors
def generate(
    source: Run | str | Path,
    prompts: Sequence[Prompt],
    *,
    base: str | None = None,
    template: str = "auto",
    system: str | None = None,
    compare: bool = False,
    dtype: str | None = None,
    **options: Any,
) -> list[Answer]:
    """Let a model answer prompts.

    The model is loaded for each call, so pass all prompts together.

    Args:
        source, base, template, system, compare, dtype: see `load_text_models`
        prompts: each a text, or messages that end with a turn of the user
        options: see `multilora.inference.options.GenerationOptions`

    Returns:
        an answer per prompt; with `compare`, first those of the base

    Raises:
        InputError: the model cannot be loaded, or an option or a prompt cannot be used.
    """

    def load() -> list[TextModel]:
        return load_text_models(source, base=base, template=template, system=system, compare=compare, dtype=dtype)

    return answers_of(load, prompts, options)


@own_errors
def load_text_models(
    source: Run | str | Path,
    *,
    base: str | None = None,
    template: str = "auto",
    system: str | None = None,
    compare: bool = False,
    dtype: str | None = None,
) -> list[TextModel]:
    """Load a model onto the best device, to generate text.

    Args:
        source: a run, an adapter folder, a model folder, `nano` or a name on the hub
        base: of an adapter folder, if its config names none or one that is not here
        template: how prompts are rendered: `chat`, `instruction`, `question` or `raw`. `auto`: as in training for a
            run; else the chat template of the tokenizer, or raw text if it has none
        system: text of the system's turn of every chat
        compare: return the base too, before the model
        dtype: of a model that is not a run; by default that of its checkpoint

    Raises:
        InputError: the model cannot be loaded, or has no base to compare it with.
    """
    found = candidate(source, dtype=dtype, base=base)
    if found.run is not None:
        _check_options(found.run, dtype)
        return found.run.text_models(template=template, system=system, compare=compare)
    if compare and found.adapter is None:
        raise InputError(f"{found.label} is a model without an adapter, so there is no base to compare it with")
    if dtype is None:
        found = replace(found, base=found.base.model_copy(update={"dtype": _checkpoint_dtype(found.base)}))
    tokenizer = found.load_tokenizer()
    if template == "auto":
        template = "chat" if tokenizer.chat_template else RAW
    base_name = None if found.adapter is None else found.base.name_or_path
    model = TextModel(found.label, found.load(), Prompts(tokenizer, template, system), base_name)
    if not compare:
        return [model]
    plain = Candidate(found.label, found.base)
    return with_base(model, found.adapter, plain.load, Prompts(_known_to(plain, tokenizer), template, system))


def _known_to(base: Candidate, tokenizer: Any) -> Any:
    """The tokenizer of a base, with the chat template of an adapter's, if the adapter's has tokens of its own."""
    of_base = base.load_tokenizer()
    if of_base.get_vocab() == tokenizer.get_vocab():
        return tokenizer
    of_base.chat_template = of_base.chat_template or tokenizer.chat_template
    return of_base


def _check_options(run: Run, dtype: str | None) -> None:
    if dtype is not None:
        raise InputError(f"{run.path} is a run, whose dtype is that of its recipe; leave dtype {dtype!r} out")


def _checkpoint_dtype(section: ModelSection) -> str:
    name = str(getattr(load_config(section), "dtype", None)).removeprefix("torch.")
    return name if name in get_args(ModelSection.model_fields["dtype"].annotation) else section.dtype
