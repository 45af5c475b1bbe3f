"""`multilora export`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from multilora.cli.options import AsJson, RunPath


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
    json: AsJson = False,
) -> None:
    """Export a run as a plain LoRA adapter or as a plain model, and verify that it equals the run's model."""
    from pathlib import Path

    from multilora.cli.show import show_json
    from multilora.runs.directory import Run, check_free

    source = Run(run)  # before the seconds that importing torch takes
    check_free(Path(out))
    if to is Target.lora:
        from multilora.export.lora import write_lora

        verification = write_lora(source, out)
    else:
        from multilora.export.merge import write_merged

        verification = write_merged(source, out)
    if json:
        show_json({"folder": out, "verification": verification and asdict(verification)})
    else:
        print(out, verification, sep="\n")
