"""Answers to prompts, from models that are loaded once everything else is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from multilora.errors import InputError, nearest
from multilora.inference.options import GenerationOptions
from multilora.inference.prompts import Prompt
from multilora.inference.text_model import Answer, TextModel


def answers_of(
    load: Callable[[], list[TextModel]], prompts: Sequence[Prompt], options: Mapping[str, Any]
) -> list[Answer]:
    """Let models answer prompts; the answers of the first model come first.

    Args:
        load: loads the models
        prompts: see `TextModel.generate`
        options: by name, those of `GenerationOptions`

    Raises:
        InputError: an option does not exist or has no effect, or `prompts` is a single text.
    """
    if isinstance(prompts, str):
        raise InputError(f"prompts is the text {prompts!r}, expected a list such as [{prompts!r}]")
    checked = generation_options(options)
    return [answer for model in load() for answer in model.generate(prompts, checked)]


def generation_options(options: Mapping[str, Any]) -> GenerationOptions:
    """Return the options of that name.

    Raises:
        InputError: one does not exist or has no effect.
    """
    known = [field.name for field in fields(GenerationOptions)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InputError(
            f"unknown option {unknown[0]!r}{nearest(unknown[0], known)}; the options are {', '.join(known)}"
        )
    stop = options.get("stop", ())
    return GenerationOptions(**{**options, "stop": (stop,) if isinstance(stop, str) else tuple(stop)})
