"""The plan of a run on disk. A resumed run takes its rows from there, and an extended run continues them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multilora.data.plan import SUMMARY_FILE, TABLE_FILE
from multilora.errors import RunDirectoryError, changes
from multilora.files import checksum, restore_folder

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("row", "task", "example", "epoch", "tokens", "trained_tokens")


@dataclass(frozen=True)
class SavedPlan:
    """What `Plan.save` wrote.

    table, steps, made_from, length, extended_at: as in `Plan`
    """

    folder: Path
    table: pa.Table
    steps: int
    made_from: dict[str, Any]
    length: dict[str, Any]
    extended_at: tuple[int, ...]

    @classmethod
    def load(cls, folder: Path) -> SavedPlan:
        """Read a plan.

        Raises:
            RunDirectoryError: it cannot be read, or its table is not the one that was written.
        """
        import pyarrow.feather as feather

        restore_folder(folder)
        try:
            summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
            if summary["table"] != checksum(folder / TABLE_FILE):
                raise ValueError(f"the checksum of {TABLE_FILE} is wrong")
            return cls(
                folder,
                feather.read_table(str(folder / TABLE_FILE), columns=list(COLUMNS), memory_map=False),
                int(summary["steps"]),
                dict(summary["made_from"]),
                dict(summary["length"]),
                tuple(map(int, summary["extended_at"])),
            )
        except (OSError, KeyError, TypeError, ValueError) as error:  # Arrow's errors are ValueErrors
            reason = f"{error!r} is missing" if isinstance(error, KeyError) else error
            raise RunDirectoryError(
                f"{folder}: no readable plan ({reason}); restore it, or train again with a new output_dir"
            ) from None

    def check_same(self, made_from: dict[str, Any]) -> None:
        """Check that a recipe and its data would continue this plan.

        Raises:
            RunDirectoryError: recipe or data have changed; lists the differences.
        """
        differences = changes(self.made_from, json.loads(json.dumps(made_from)))
        if differences:
            raise RunDirectoryError(
                f"{self.folder}: recipe or data differ from those of the saved plan:\n  "
                + "\n  ".join(differences)
                + "\nrestore them to continue this run, or start a new run in another output_dir"
            )

    def used(self, tasks: int) -> list[int]:
        """Return how many draws of each of the `tasks` the plan uses."""
        counts: list[int] = np.bincount(self.table["task"].to_numpy(), minlength=tasks).tolist()
        return counts
