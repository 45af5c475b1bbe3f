"""`report`: write the report of a run, a study or a comparison."""

from __future__ import annotations

from pathlib import Path

from multilora.errors import InputError
from multilora.files import write_text
from multilora.foreign_errors import own_errors
from multilora.runs.directory import RECIPE_FILE, Run

REPORT_FILE = "report.html"


@own_errors
def report(source: Run | str | Path, out: str | Path | None = None, *, token_losses: bool = False) -> Path:
    """Write a report as one HTML file that needs no network. An existing file is replaced.

    Args:
        source: a finished run, or the folder of a study
        out: the file; by default `report.html` in the folder
        token_losses: of a run: load the base and the trained model, and show the loss of each token of the correct
            answers to the shown examples

    Returns:
        the file

    Raises:
        RunDirectoryError: not a finished run, or a file of it is damaged.
        InputError: the folder holds none of these.
    """
    from multilora.report.study_page import study_page
    from multilora.study.stored import RESULTS_FILE, STUDY_FILE

    path = source.path if isinstance(source, Run) else Path(source)
    if isinstance(source, Run) or (path / RECIPE_FILE).exists() or not path.is_dir():
        from multilora.report.run_page import run_page

        run = source if isinstance(source, Run) else Run(path)
        losses = None
        if token_losses:
            from multilora.report.token_losses import token_losses_of

            losses = token_losses_of(run)
        page = run_page(run, losses)
    elif token_losses:
        raise InputError(f"{path}: token losses are those of a run, and this is none; leave --token-losses out")
    elif (path / STUDY_FILE).is_file():
        page = study_page(path)
    else:
        raise InputError(
            f"{path}: no {RECIPE_FILE} or {STUDY_FILE} here; expected the folder of a run or of a study (a study has "
            f"{RESULTS_FILE} when its first runs are finished)"
        )
    file = path / REPORT_FILE if out is None else Path(out)
    write_text(file, page.html())
    return file
