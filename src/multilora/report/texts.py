"""Numbers as texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MISSING = "–"


def number(value: float | None, digits: int) -> str:
    """A number with so many digits after the point; a dash if it is not known."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return MISSING if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def percent_interval(score: Mapping[str, Any]) -> str:
    """A score and its 95 % confidence interval in percent: `71.5 (67.4 to 75.3)`."""
    if score["value"] is None:
        return MISSING
    interval = score.get("interval")
    return percent(score["value"]) + (f" ({percent(interval[0])} to {percent(interval[1])})" if interval else "")


def seconds(value: float | None) -> str:
    """A time in seconds, minutes or hours."""
    if value is None:
        return MISSING
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
