"""Options of the commands that generate text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from multilora.cli.imports import heavy_imports

if TYPE_CHECKING:
    from multilora.inference.text_model import TextModel

ModelPath = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run, a PEFT adapter, a model folder, `nano` or a name on the hub.")
]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="Text of the system's turn.")]
Template = Annotated[
    str,
    typer.Option(
        "--template",
        metavar="NAME",
        help="chat, instruction, question, or raw for bare text; auto: as in training, else chat if there is a chat "
        "template, else raw.",
    ),
]
Compare = Annotated[bool, typer.Option("--compare", help="Let the base answer too, side by side.")]
Base = Annotated[
    str | None, typer.Option("--base", metavar="BASE", help="Base of a PEFT adapter, if its config names none here.")
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", metavar="DTYPE", help="float32, bfloat16 or float16; by default the checkpoint's."),
]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Maximum length of an answer in tokens.")]
Temperature = Annotated[
    float, typer.Option("--temperature", help="0: always the most likely token; more: draw, the more the freer.")
]
TopP = Annotated[float, typer.Option("--top-p", help="Draw from the most likely tokens with this probability.")]
TopK = Annotated[int, typer.Option("--top-k", help="Draw from this many most likely tokens; 0 for all.")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", help="More than 1: avoid tokens already used.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the draws.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", metavar="TEXT", help="Text that ends an answer; repeatable.")]


def load(
    model: str, base: str | None, template: str, system: str | None, compare: bool, dtype: str | None
) -> list[TextModel]:
    """Load the models and say on stderr what they are."""
    from multilora.cli.show import note
    from multilora.progress import facts
    from multilora.runs.candidate import candidate

    candidate(model, dtype=dtype, base=base)  # before the seconds that importing torch takes
    with heavy_imports():
        from multilora.runs.generate import load_text_models

    models = load_text_models(model, base=base, template=template, system=system, compare=compare, dtype=dtype)
    note(facts(models[-1].facts))
    return models


def short_label(label: str) -> str:
    """Heading of a model in a comparison: the last part of its path."""
    from pathlib import Path

    return Path(label).name or label
