"""Charts of the branches of MultiLoRA, and of intruder dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multilora.analysis.figure_parts import (
    ALL_KINDS,
    Spectra,
    kinds_of,
    lines_by_layer,
    matrices_of,
    methods_of,
)
from multilora.charts.chart import Chart, Row, Selector
from multilora.charts.styles import method_scales, series_colours

BRANCH_MEASURES = {
    "scale_mean_abs": "mean |scale|",
    "scale_sd": "standard deviation of the scale",
    "energy": "share of the energy",
    "change_if_dropped": "change of the update if dropped",
    "row_overlap": "overlap of inputs with other branches",
    "column_overlap": "overlap of outputs with other branches",
}


def branches_chart(spectra: Spectra) -> Chart:
    """Scales, energies and overlaps of the branches of MultiLoRA by layer."""
    rows: list[Row] = []
    branched = {label: s for label, s in spectra.items() if any(m.get("branches") for m in s["matrices"])}
    for label, matrix in matrices_of(branched):
        for index, branch in enumerate(matrix.get("branches") or ()):
            for name, title in BRANCH_MEASURES.items():
                value = _branch_value(branch, name, index)
                if value is None or matrix["layer"] is None:
                    continue
                rows.append(
                    {
                        "method": label,
                        "layer": matrix["layer"],
                        "kind": matrix["kind"],
                        "branch": f"branch {index + 1}",
                        "measure": title,
                        "value": value,
                    }
                )
    branches = list(dict.fromkeys(row["branch"] for row in rows))
    selectors = [Selector("measure", "measure", list(BRANCH_MEASURES.values()))]
    selectors.append(Selector("kind", "module type", kinds_of(branched), ALL_KINDS))
    if len(branched) > 1:
        selectors.append(Selector("method", "method", list(branched)))
    view = lines_by_layer(series_colours("branch", branches))
    return Chart(
        "branches",
        "Branches by layer",
        "Size of the learned scale, share of the energy, and overlap of each branch with the others, against the "
        "layer; means over the selected matrices. Overlaps near 1 mean that branches are redundant.",
        rows,
        view,
        selectors=selectors,
        facet="kind",
    )


def _branch_value(branch: Mapping[str, Any], name: str, index: int) -> float | None:
    value = branch[name]
    if not isinstance(value, list):
        return value if value is None else float(value)
    others = [item for other, item in enumerate(value) if other != index and item is not None]
    return sum(others) / len(others) if others else None


def intruders_chart(spectra: Spectra) -> Chart:
    """Number of intruder dimensions by layer and method."""
    rows = [
        {
            "method": label,
            "layer": matrix["layer"],
            "kind": matrix["kind"],
            "intruders": matrix["intruders"]["count"],
            "examined": matrix["intruders"]["examined"],
        }
        for label, matrix in matrices_of(spectra)
        if matrix.get("intruders") is not None and matrix["layer"] is not None
    ]
    view = {
        "mark": {"type": "line", "strokeWidth": 2, "point": True, "tooltip": True},
        "encoding": {
            "x": {"field": "layer", "type": "ordinal", "title": "layer", "axis": {"labelAngle": 0}},
            "y": {
                "field": "intruders",
                "aggregate": "mean",
                "type": "quantitative",
                "title": "intruder dimensions per matrix",
            },
            **method_scales(methods_of(spectra)),
        },
    }
    return Chart(
        "intruders",
        "Intruder dimensions by layer",
        "Number of the largest singular vectors of the tuned weight that match no singular vector of the base, mean "
        "over the selected matrices, against the layer.",
        rows,
        view,
        selectors=[Selector("kind", "module type", kinds_of(spectra), ALL_KINDS)],
        facet="kind",
    )
