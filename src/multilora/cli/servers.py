"""`multilora servers`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multilora.cli.options import AsJson

if TYPE_CHECKING:
    from multilora.export.servers.commands import NextCommand


def servers(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A plain LoRA, a merged model, a GGUF file or a run trained in full.")
    ],
    json: AsJson = False,
) -> None:
    """Print the commands with which other programs load or serve a model: vLLM, llama.cpp and others."""
    from multilora.cli.show import show_json
    from multilora.export.servers.commands import as_lines
    from multilora.export.servers_of import commands_of

    commands: list[NextCommand] = commands_of(Path(model))
    if json:
        show_json([asdict(command) for command in commands])
    else:
        print(*as_lines(commands), sep="\n")
