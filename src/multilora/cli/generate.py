"""`multilora generate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multilora.cli import sampling
from multilora.cli.options import AsJson

if TYPE_CHECKING:
    from multilora.inference.options import GenerationOptions
    from multilora.inference.prompts import Prompt
    from multilora.inference.text_model import Answer, TextModel

Texts = Annotated[list[str] | None, typer.Option("--prompt", "-p", metavar="TEXT", help="A prompt; repeatable.")]
File = Annotated[
    str | None,
    typer.Option(
        "--file", metavar="FILE", help="Text with a prompt per line; or .jsonl, .csv, ... with `prompt` or `messages`."
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task", metavar="NAME", help="Prompts are fields of this task of the run, as JSON or records of FILE."
    ),
]


def generate(
    model: sampling.ModelPath,
    prompt: Texts = None,
    file: File = None,
    task: Task = None,
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
    """Let a model answer prompts; the same options give the same text."""
    from dataclasses import asdict

    from multilora.cli.show import note, show_json
    from multilora.inference.options import GenerationOptions

    options = GenerationOptions(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed, tuple(stop or ()))
    prompts = _prompts(model, prompt or [], file, task)
    models = sampling.load(model, base, template, system, compare, dtype)
    if json or compare:
        answers = [item.generate(prompts, options) for item in models]
        if json:
            show_json([asdict(answer) for of_model in answers for answer in of_model])
        else:
            _show_side_by_side(models, prompts, answers)
    else:
        answers = [_stream(models[0], prompts, options)]
    for of_model in answers:
        cut = sum(answer.finish_reason == "length" for answer in of_model)
        if cut:
            note(f"{of_model[0].model}: {cut:,} of {len(of_model):,} answers reached their maximum length")


def _prompts(model: str, texts: list[str], file: str | None, task: str | None) -> list[Prompt]:
    from multilora.errors import InputError
    from multilora.runs.directory import RECIPE_FILE, Run

    if not (texts or file):
        raise InputError("there is nothing to answer; give --prompt TEXT or --file FILE, or use `multilora chat`")
    if task is None and file is None:  # before the time that importing the tasks takes
        return list(texts)
    from multilora.inference.prompt_file import json_prompt, read_prompts, task_section

    section = None
    if task is not None:
        if not (Path(model) / RECIPE_FILE).exists():
            raise InputError(f"--task {task}: {model} is not a run, so it has no tasks; leave it out")
        section = task_section(Run(model).recipe, task)
    prompts: list[Prompt] = [text if section is None else json_prompt(text, section) for text in texts]
    if file is not None:
        prompts += read_prompts(Path(file), section)
    return prompts


class _Printer:
    """Prints the answers in the order of their prompts, each as far as it is known."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts
        self.parts = [""] * len(prompts)
        self.finished = [False] * len(prompts)
        self.current = 0
        self.begun = False

    def __call__(self, index: int, text: str, finished: bool) -> None:
        self.parts[index] += text
        self.finished[index] = finished
        while self.current < len(self.parts):
            self._print(self.current)
            if not self.finished[self.current]:
                break
            sys.stdout.write("\n")
            self.current, self.begun = self.current + 1, False
        sys.stdout.flush()

    def _print(self, index: int) -> None:
        from multilora.cli.show import printable

        if not self.begun and len(self.prompts) > 1:
            sys.stdout.write(("\n" if index else "") + heading(self.prompts[index]) + "\n")
        self.begun = True
        sys.stdout.write(printable(self.parts[index]))
        self.parts[index] = ""


def heading(prompt: Prompt) -> str:
    """The prompt, or the last turn of a chat, behind a `>`."""
    from multilora.cli.show import printable

    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content"))
    return printable("> " + text.replace("\n", "\n> "))


def _stream(model: TextModel, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Answer]:
    return model.generate(prompts, options, _Printer(prompts))


def _show_side_by_side(
    models: Sequence[TextModel], prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]]
) -> None:
    from multilora.cli.show import side_by_side

    labels = [sampling.short_label(item.label) for item in models]
    for index, prompt in enumerate(prompts):
        print(("\n" if index else "") + heading(prompt))
        side_by_side(labels, [of_model[index].text for of_model in answers])
