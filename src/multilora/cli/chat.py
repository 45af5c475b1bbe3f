"""`multilora chat`."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from multilora.cli import sampling
from multilora.cli.options import AsJson

if TYPE_CHECKING:
    from multilora.inference.chat import Chat
    from multilora.inference.text_model import Answer

HELP = """/reset  start a new conversation
/exit   leave (or Ctrl-D)
/help   show this
Ctrl-C stops an answer; what was said so far stays in the conversation."""


def chat(
    model: sampling.ModelPath,
    system: sampling.System = None,
    template: sampling.Template = "auto",
    compare: sampling.Compare = False,
    max_new_tokens: sampling.MaxNewTokens = 256,
    temperature: sampling.Temperature = 0.0,
    top_p: sampling.TopP = 1.0,
    top_k: sampling.TopK = 0,
    repetition_penalty: sampling.Penalty = 1.0,
    seed: sampling.Seed = 0,
    stop: sampling.Stop = None,
    base: sampling.Base = None,
    dtype: sampling.Dtype = None,
    json: AsJson = False,
) -> None:
    """Talk to a model in the terminal."""
    from multilora.cli.show import note
    from multilora.inference.options import GenerationOptions

    options = GenerationOptions(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed, tuple(stop or ()))
    models = sampling.load(model, base, template, system, compare, dtype)
    from multilora.inference.chat import Chat
    from multilora.inference.prompts import RAW

    if models[0].prompts.template == RAW:
        note("raw text has no turns: every line is continued on its own")
    note("/help lists the commands")
    _talk(Chat(models, options), json)


def _talk(chat: Chat, json: bool) -> None:
    from multilora.errors import InputError

    interactive = sys.stdin.isatty()
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401  (line editing and history)
    while True:
        try:
            text = input("> " if interactive else "").strip()
        except (EOFError, KeyboardInterrupt):
            if interactive:
                print()
            return
        if text == "/exit":
            return
        if text == "/reset":
            chat.reset()
        elif text == "/help":
            print(HELP)
        elif text.startswith("/"):
            print(f"unknown command {text.split()[0]!r}; /help lists the commands", file=sys.stderr)
        elif text:
            try:
                _answer(chat, text, json)
            except KeyboardInterrupt:
                print("\n(stopped)", file=sys.stderr)
            except InputError as error:
                print(f"error: {error}", file=sys.stderr)


def _answer(chat: Chat, text: str, json: bool) -> None:
    from multilora.cli.show import printable, side_by_side

    def show(part: str) -> None:
        sys.stdout.write(printable(part))
        sys.stdout.flush()

    several = len(chat.models) > 1
    answers = chat.ask(text, None if json or several else show)
    if json:
        _show_json(answers)
    elif several:
        side_by_side([sampling.short_label(answer.model) for answer in answers], [answer.text for answer in answers])
    else:
        print()
    for answer in answers:
        if answer.finish_reason == "length":
            from multilora.cli.show import note

            note(f"({answer.model} reached the maximum length)")


def _show_json(answers: list[Answer]) -> None:
    """Print one line per answer."""
    from dataclasses import asdict

    from multilora.files import to_json

    for answer in answers:
        print(to_json(asdict(answer), indent=None), flush=True)
