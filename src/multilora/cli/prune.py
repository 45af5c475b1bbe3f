"""`multilora prune`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from multilora.cli.imports import heavy_imports
from multilora.cli.options import AsJson


class Kind(StrEnum):
    """Method of the pruned adapter."""

    multilora = "multilora"
    lora = "lora"


def prune(
    source: Annotated[str, typer.Argument(metavar="PATH", help="A finished run, or a folder with a PEFT adapter.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="New folder.")],
    below: Annotated[
        float, typer.Option("--below", metavar="SHARE", help="Drop branches with less than this share of the update.")
    ] = 0.05,
    ranks: Annotated[
        bool, typer.Option("--ranks", help="Drop single ranks, as for a LoRA, instead of branches.")
    ] = False,
    to: Annotated[
        Kind | None, typer.Option("--to", help="multilora (for branches the default), or a plain LoRA.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="Base of a PEFT adapter, if its config names none here."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Drop the branches that contribute little to the weight update, and measure the effect."""
    from pathlib import Path

    from multilora.runs.directory import check_free

    check_free(Path(out))
    from multilora.cli.show import say, show_json, table

    with heavy_imports():
        from multilora.export.edit.prune_adapter import prune_adapter
    from multilora.export.proof.result import TABLE_COLUMNS, table_rows

    pruned = prune_adapter(source, out, below=below, ranks=ranks, to=to, base=base)
    if json:
        show_json({**asdict(pruned), "folder": out})
        return
    print(out)
    say(str(pruned.pruning))
    if pruned.effect is not None:
        table("effect on the model", TABLE_COLUMNS, table_rows(pruned.effect))
    if pruned.proof is not None:
        say(str(pruned.proof))
