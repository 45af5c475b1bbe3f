"""`multilora demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from multilora.cli.imports import heavy_imports
from multilora.cli.options import AsJson


def demo(
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="New folder for the results; by default runs/demo.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Compare LoRA, MultiLoRA and full fine-tuning on the embedded base; takes a few minutes on two CPU cores."""
    import sys
    from pathlib import Path

    from multilora.cli.study_output import show_results

    with heavy_imports():
        from multilora.demo import next_free, run_demo

    study = run_demo(
        Path(out) if out else next_free(Path("runs/demo")),
        note=lambda line: print(line, file=sys.stderr, flush=True),
    )
    show_results(study.path, as_json=json)
