"""Cells that kill their process: after some attempts without progress they count as failed.

A crash in a library or the kernel's out-of-memory killer end a process without an error that could be recorded. The
next process would claim the same cell, and so on. An attempt is therefore counted before it begins, in
`claims/<id>/attempts.json`, and the file is removed at its end, whatever the end is, unless the process dies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multilora.errors import RunError
from multilora.files import write_json
from multilora.runs.directory import weights_folder
from multilora.study.cells import Cell
from multilora.study.folder import claim_folder, read_values, result_of
from multilora.training.checkpoint import checkpoints

LIMIT = 3


@contextmanager
def counted_attempt(study_path: Path, cell: Cell) -> Iterator[None]:
    """Count an attempt to run a claimed cell, for the block.

    Raises:
        RunError: on entering; the process died in `LIMIT` attempts that got no further. The next call counts from 0.
    """
    file = claim_folder(study_path, cell) / "attempts.json"
    reached = _reached(cell)
    before = read_values(file)
    died = int(before["attempts"]) if before is not None and before["reached"] == reached else 0
    if died >= LIMIT:
        file.unlink()
        raise RunError(
            f"the process that ran this cell died {died} times without an error and without progress ({reached}). It "
            "was killed, for example because memory ran out, or it crashed; the system's log says which. Fix the "
            "cause, then run the study with --retry-failed"
        )
    write_json(file, {"attempts": died + 1, "reached": reached})
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _reached(cell: Cell) -> str:
    """How far a cell is; attempts that change it are progress."""
    saved = checkpoints(cell.path / "checkpoints")
    trained = weights_folder(cell.path, cell.recipe.adapter.method).is_dir()
    training = "it is trained" if trained else f"its last checkpoint is {saved[-1].name if saved else 'none'}"
    result = result_of(cell)
    measures = list(result.measures) if result is not None else []
    return f"{training}; measured: {', '.join(measures) or 'nothing'}"
