"""`multilora report`."""

from __future__ import annotations

from typing import Annotated

import typer

from multilora.cli.options import AsJson


def report(
    source: Annotated[str, typer.Argument(metavar="RUN|STUDY", help="Folder of a finished run or of a study.")],
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="The HTML file; by default report.html in the folder.")
    ] = None,
    token_losses: Annotated[
        bool,
        typer.Option("--token-losses", help="Of a run: load the models, and show the loss of each token of examples."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Write a report as one HTML file, with tables, charts and their data; it needs no network."""
    from multilora.cli.show import show_json
    from multilora.report.write import report as write_report

    file = write_report(source, out, token_losses=token_losses)
    if json:
        show_json({"report": str(file)})
        return
    print(f"report: {file}")
