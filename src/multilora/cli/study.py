"""`multilora study`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from multilora.cli.imports import heavy_imports
from multilora.cli.options import AsJson

if TYPE_CHECKING:
    from multilora.study.status import StudyStatus


def study(
    file: Annotated[str, typer.Argument(metavar="STUDY", help="YAML file with the study.")],
    workers: Annotated[
        int, typer.Option("--workers", min=1, metavar="N", help="Processes on this machine, one per GPU if it has any.")
    ] = 1,
    submit: Annotated[
        str | None, typer.Option("--submit", metavar="EXECUTOR", help="Submit jobs with submitit: slurm or local.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells with estimates of time and memory.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Show how far the study is.")] = False,
    list_cells: Annotated[bool, typer.Option("--list", help="Print the ids of cells that can be run.")] = False,
    cell: Annotated[str | None, typer.Option("--cell", metavar="ID", help="Run one cell.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed cells again.")] = False,
    json: AsJson = False,
) -> None:
    """Compare methods fairly: search settings on a validation split, run several seeds, write tables with intervals."""
    import sys

    from multilora.cli.show import show_json
    from multilora.errors import InputError, RunError
    from multilora.study.load import Study

    chosen = [name for name, value in (("--dry-run", dry_run), ("--status", status), ("--list", list_cells)) if value]
    chosen += [name for name, value in (("--cell", cell), ("--submit", submit)) if value]
    chosen += ["--workers"] if workers > 1 else []
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(chosen)} exclude each other; give one of them")
    loaded = Study.load(file)
    if dry_run:
        from multilora.study.estimate import estimate

        estimates = estimate(loaded)
        show_json([item.as_dict() for item in estimates]) if json else _show_estimates(estimates)
        return
    from multilora.study.cells import StudyCells

    cells = StudyCells(loaded)
    if list_cells:
        from multilora.study.worker import open_cells

        waiting = open_cells(cells)
        show_json([item.id for item in waiting]) if json else print(*(item.id for item in waiting), sep="\n")
        return
    from multilora.study.status import study_status

    if status:
        _show_status(study_status(cells), as_json=json)
        return

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if cell is not None:
        with heavy_imports():
            from multilora.study.worker import run_one

        error = run_one(loaded, cell)
        if error is not None:
            raise RunError(f"cell {cell} failed: {error}")
        return
    if submit is not None:
        from multilora.study.cluster import submit_jobs

        jobs = submit_jobs(loaded, submit)
        show_json(jobs) if json else print(*jobs, sep="\n")
        return
    from multilora.study.launch import run_in_processes

    with heavy_imports():
        from multilora.study.worker import run_study

    if workers > 1:
        run_in_processes(loaded, workers, retry_failed=retry_failed, report=report)
    else:
        run_study(loaded, retry_failed=retry_failed, report=report)
    from multilora.cli.study_output import show_results
    from multilora.report.write import report as write_report

    write_report(loaded.path)
    show_results(loaded.path, as_json=json)


def _show_status(status: StudyStatus, *, as_json: bool) -> None:
    from multilora.cli.show import show_json, table
    from multilora.study.worker import duration, progress_text

    if as_json:
        show_json(status.as_dict())
        return
    rows = [
        [item.cell.label, item.cell.id, item.state, "" if item.seconds is None else duration(item.seconds)]
        for item in status.cells
    ]
    table(progress_text(status), ["cell", "id", "state", "time"], rows)
    for item in status.cells:
        if item.error is not None:
            print(f"{item.cell.id} ({item.cell.label}): {item.error}")
    if status.not_chosen:
        print(f"final runs are known when the trials are finished: {', '.join(status.not_chosen)}")
    if status.unknown_single_task:
        print(f"known when the final runs are finished: {status.unknown_single_task} runs on a single task")
    if status.other_cells:
        print(f"not part of this study file, kept and not used: {', '.join(status.other_cells)}")


def _show_estimates(estimates: Any) -> None:
    from multilora.cli.show import table
    from multilora.study.worker import duration

    rows = [
        [item.label, item.id or "", duration(item.seconds), f"{item.peak_bytes / 2**30:.1f}", item.source]
        for item in estimates
    ]
    table(
        f"{len(estimates)} cells, about {duration(sum(item.seconds for item in estimates))} with one process",
        ["cell", "id", "time", "peak GiB", "estimated from"],
        rows,
    )
