"""Choose the records to hold out for evaluation if a source has no evaluation split.

Each record has a draw in [0, 1), a hash of its content, and is held out if the draw is below `holdout`. So a record
stays in its split when other records are added, removed or reordered, and copies of a record are in the same split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from multilora.errors import DataError

Draws = npt.NDArray[np.float64]


def draw_of(record: Mapping[str, Any]) -> float:
    """The draw of a record, which does not depend on the order of its fields."""
    content = json.dumps(record, sort_keys=True, ensure_ascii=False, default=str)
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def held_out(draws: Draws, fraction: float, lowest: float, highest: float) -> npt.NDArray[np.bool_]:
    """Whether each record is held out, [n]. If a split would be empty, it gets the record with the nearest draw.

    Args:
        draws: draws of records, [n]
        fraction: approximate fraction of records to hold out
        lowest, highest: the lowest and highest draw in the whole source

    Raises:
        DataError: the source has a single record, or copies of one.
    """
    if lowest == highest:
        raise DataError(
            "a single record (or copies of one) cannot be split into training and evaluation; add data, or name the "
            "evaluation data with eval_path"
        )
    if lowest >= fraction:
        return np.equal(draws, lowest)
    return np.less(draws, min(fraction, highest))
