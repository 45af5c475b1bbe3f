"""`multilora export`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from multilora.cli.options import RunPath


class Target(str, Enum):
    """What to export to."""

    lora = "lora"
    merged = "merged"


def export(
    run: RunPath,
    to: Annotated[Target, typer.Option("--to", help="A plain LoRA adapter, or the base with the adapter merged.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="New folder.")],
) -> None:
    """Hand a run over as an ordinary LoRA or as an ordinary model."""
    if to is Target.lora:
        from multilora.export.lora import export_lora

        print(export_lora(run, out))
    else:
        from multilora.export.merge import export_merged

        print(export_merged(run, out))
