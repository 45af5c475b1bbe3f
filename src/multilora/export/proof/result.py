"""The result of a proof, as values and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from multilora.errors import RunError


@dataclass(frozen=True)
class ProofRow:
    """The comparison on the prompts of one task, or on all of them.

    task: name of the task, `random tokens`, or `total`
    prompts: number of compared prompts
    difference: the largest difference of a logit
    texts: number of compared greedy texts
    equal_texts: how many of them are equal, token by token
    near_ties: how many of the others part at a token whose lead over the second best is within the tolerance
    loss, exported_loss: mean nats per trained token of the original and of the export; None without trained tokens
    """

    task: str
    prompts: int
    difference: float
    texts: int
    equal_texts: int
    near_ties: int
    loss: float | None
    exported_loss: float | None


@dataclass(frozen=True)
class Proof:
    """How far a verified export is from the original.

    reader: what read the files, with versions
    compared: what was compared: logits on prompts, or the factors of the adapter
    count: number of compared prompts, or of factors
    difference, tolerance: the largest difference, and the largest that would have been accepted
    rows: one per task; empty for factors
    total: over all tasks; None for factors
    random: the prompts are random tokens, because there were no data
    """

    reader: str
    compared: Literal["logits", "factors"]
    count: int
    difference: float
    tolerance: float
    rows: list[ProofRow]
    total: ProofRow | None
    random: bool

    def __str__(self) -> str:
        if self.compared == "factors":
            what = f"value of {self.count} factors"
        else:
            kind = "sequences of random tokens" if self.random else "prompts of the run's tasks"
            what = f"logit on {self.count} {kind}"
        return (
            f"verified with {self.reader}: the files differ from the original by at most {self.difference:.2g} in any "
            f"{what} (tolerance {self.tolerance:.2g})"
        )


def factor_proof(count: int, difference: float, tolerance: float, reader: str) -> Proof:
    """Return the proof of files whose factors were read back by `reader` (name and version) and compared.

    Raises:
        RunError: the difference is too large.
    """
    if not difference <= tolerance:
        raise RunError(
            f"the export differs from the original: by {difference:.3g} in a factor, expected at most {tolerance:.2g}. "
            "Export it with --to lora or --to merged, and report this as a bug; nothing was written"
        )
    return Proof(reader, "factors", count, difference, tolerance, [], None, False)


TABLE_COLUMNS = ("task", "n", "logits", "same text", "loss", "exported", "change")  # fit 80 characters


def table_rows(proof: Proof) -> list[list[str]]:
    """Return one row of text per task and one for the total, under `TABLE_COLUMNS`; none for factors.

    The columns are the task, its prompts, the largest difference of a logit, the equal greedy texts and the near ties,
    the loss per trained token of the original and of the export, and its change.
    """
    rows = [*proof.rows, *([proof.total] if proof.total is not None and len(proof.rows) > 1 else [])]
    return [_cells(row) for row in rows]


def _cells(row: ProofRow) -> list[str]:
    ties = f", {row.near_ties} tie{'s' if row.near_ties > 1 else ''}" if row.near_ties else ""
    texts = f"{row.equal_texts} of {row.texts}{ties}" if row.texts else "–"
    losses = ["–", "–", "–"]
    if row.loss is not None and row.exported_loss is not None:
        losses = [f"{row.loss:.4f}", f"{row.exported_loss:.4f}", f"{row.exported_loss - row.loss:+.1e}"]
    return [row.task, str(row.prompts), f"{row.difference:.1e}", texts, *losses]
