"""`multilora nano build`."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="The embedded base model.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """The embedded base model."""


@app.command("build")
def build(
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="New folder for the model and tokenizer.")
    ] = "runs/nano",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the text, its order and the weights.")] = 0,
) -> None:
    """Rebuild the embedded base: generate the text, train the tokenizer and pretrain the model."""
    from multilora.cli.show import show_json
    from multilora.nano.build import build as build_nano

    show_json(build_nano(out, seed=seed))
