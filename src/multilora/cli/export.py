"""`multilora export`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from multilora.cli.options import RunPath


class Target(StrEnum):
    """Export format."""

    lora = "lora"
    merged = "merged"


def export(
    run: RunPath,
    to: Annotated[
        Target, typer.Option("--to", help="lora: a plain LoRA adapter; merged: the base with the adapter merged.")
    ],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="New folder.")],
) -> None:
    """Export a run as a plain LoRA adapter or as a plain model."""
    if to is Target.lora:
        from multilora.export.lora import export_lora

        print(export_lora(run, out))
    else:
        from multilora.export.merge import export_merged

        print(export_merged(run, out))
