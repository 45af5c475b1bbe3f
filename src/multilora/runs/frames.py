"""What a run has measured, as pandas data frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def metrics_frame(lines: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the lines of a log, with the step as index and a column per value; NaN where a line has none."""
    import pandas as pd

    frame = pd.DataFrame(list(lines))
    return frame.set_index("step") if len(frame) else frame


def scores_frame(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> pd.DataFrame:
    """Return a row per task and model.

    Args:
        scores: model (`before`, `after`) -> task -> score, as in `eval.json`

    Returns:
        columns metric, value, low, high (95 % interval; NaN without one), n and loss; indexed by task and model
    """
    import pandas as pd

    rows = []
    for model, of_tasks in scores.items():
        for task, score in of_tasks.items():
            low, high = score.get("interval") or (None, None)
            row = {"task": task, "model": model, "metric": score["metric"], "value": score["value"]}
            rows.append({**row, "low": low, "high": high, "n": score["n"], "loss": score["loss"]})
    return pd.DataFrame(rows).set_index(["task", "model"]).sort_index(level="task", sort_remaining=False)
