"""An analysis as tables: one row per matrix, branch or pair."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from multilora.analysis.compare import Analysis

Rows = list[dict[str, Any]]


def matrix_rows(analysis: Analysis) -> Rows:
    """One row per matrix: its measures, and its intruder dimensions if they were computed."""
    rows = []
    for label, spectrum in analysis.spectra.items():
        for matrix in spectrum.matrices:
            row: dict[str, Any] = {"model": label, "name": matrix.name, "layer": matrix.layer, "kind": matrix.kind}
            row |= {"d_out": matrix.shape[0], "d_in": matrix.shape[1], **asdict(matrix.measures)}
            row["residual"] = matrix.residual
            if matrix.intruders is not None:
                row |= {"intruders": matrix.intruders.count, "examined": matrix.intruders.examined}
            rows.append(_finite(row))
    return rows


def branch_rows(analysis: Analysis) -> Rows:
    """One row per branch of a MultiLoRA update; overlaps are the means over the other branches."""
    rows = []
    for label, spectrum in analysis.spectra.items():
        for matrix in spectrum.matrices:
            for index, branch in enumerate(matrix.branches or ()):
                values = asdict(branch)
                for side in ("row_overlap", "column_overlap"):
                    others = [value for other, value in enumerate(values.pop(side)) if other != index]
                    values[side] = sum(others) / len(others) if others else math.nan
                row: dict[str, Any] = {"model": label, "name": matrix.name}
                row |= {"layer": matrix.layer, "kind": matrix.kind}
                rows.append(_finite({**row, "branch": index + 1, **values}))
    return rows


def similarity_rows(analysis: Analysis) -> Rows:
    """One row per pair, matrix, side and pair of numbers of singular vectors."""
    return list(_similarities(analysis))


def _similarities(analysis: Analysis) -> Iterator[dict[str, Any]]:
    for pair in analysis.similarities:
        for matrix in pair.matrices:
            for side in ("left", "right"):
                values, expected = getattr(matrix, side), getattr(matrix, f"expected_{side}")
                for a, i in enumerate(matrix.grid):
                    for b, j in enumerate(matrix.grid):
                        yield {
                            "first": pair.first,
                            "second": pair.second,
                            "name": matrix.name,
                            "layer": matrix.layer,
                            "kind": matrix.kind,
                            "side": side,
                            "i": i,
                            "j": j,
                            "phi": values[a][b],
                            "expected_phi": round(expected[a][b], 6),
                        }


def csv_tables(analysis: Analysis) -> dict[str, str]:
    """Name -> CSV, without empty tables."""
    tables = {
        "matrices": matrix_rows(analysis),
        "branches": branch_rows(analysis),
        "similarities": similarity_rows(analysis),
    }
    return {name: _csv(rows) for name, rows in tables.items() if rows}


def _csv(rows: Rows) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """Values that are not known are empty."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
