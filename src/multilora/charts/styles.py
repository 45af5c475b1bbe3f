"""One style per method, the same in every chart and report.

The colours of the common methods are those of Okabe & Ito, which colour-blind readers can tell apart, the lightest ones
darkened: all have a contrast of at least 3 : 1 on white and on dark pages. Dashes and shapes repeat what they say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Method of the adapter -> colours of its first, second, ... variant.
COLOURS: dict[str, tuple[str, ...]] = {
    "base": ("#7a7f87",),
    "full": ("#009e73",),
    "lora": ("#0072b2", "#4a9cd3"),
    "multilora": ("#d55e00", "#c98500"),
}
# Of all other methods, in order of appearance.
OTHERS = ("#c0629a", "#8c6d31", "#7a5ccc", "#8a8a2a", "#2f9285")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
# For several series of one method: tasks, module types, branches.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#c0629a", "#c98500", "#4a9cd3", "#7a5ccc", "#8c6d31", "#8a8a2a", "#2f9285")


@dataclass(frozen=True)
class Style:
    """How a method is drawn: a colour, a pattern of dashes and a shape of points."""

    colour: str
    dash: list[int]
    shape: str


def method_styles(methods: Mapping[str, str]) -> dict[str, Style]:
    """The styles of several labels.

    Args:
        methods: label, such as `lora r=8` -> method of its adapter, such as `lora`
    """
    seen: Counter[str] = Counter()
    styles = {}
    for index, (label, method) in enumerate(methods.items()):
        family = method if method in COLOURS else ""
        colours = COLOURS.get(method, OTHERS)
        number = seen[family]
        seen[family] += 1
        dash = DASHES[number % len(DASHES)] if family else DASHES[number // len(OTHERS) % len(DASHES)]
        styles[label] = Style(colours[number % len(colours)], list(dash), SHAPES[index % len(SHAPES)])
    return styles


def method_scales(methods: Mapping[str, str], *, shapes: bool = False) -> dict[str, dict[str, object]]:
    """The encoding channels `color` and `strokeDash` of a field `method`, or `color` and `shape` for points."""
    styles = method_styles(methods)
    domain = list(styles)
    legend: dict[str, object] = {
        "title": None,
        "orient": "top",
        "columns": 2,
        "labelLimit": 260,
        "symbolStrokeWidth": 2.5,
    }
    values: list[object] = [style.shape if shapes else style.dash for style in styles.values()]
    second = "shape" if shapes else "strokeDash"
    if not shapes:
        legend["symbolType"] = "stroke"
    colour = {"domain": domain, "range": [style.colour for style in styles.values()]}
    return {
        "color": {"field": "method", "type": "nominal", "scale": colour, "legend": legend},
        second: {"field": "method", "type": "nominal", "scale": {"domain": domain, "range": values}, "legend": legend},
    }


def series_colours(field: str, values: Sequence[str]) -> dict[str, Any]:
    """The encoding channel `color` of a field that is not the method."""
    colours = [SERIES[index % len(SERIES)] for index in range(len(values))]
    legend = {"title": None, "orient": "top", "columns": 4}
    scale = {"domain": list(values), "range": colours}
    return {"color": {"field": field, "type": "nominal", "scale": scale, "legend": legend}}
