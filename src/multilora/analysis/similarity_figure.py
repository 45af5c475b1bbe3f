"""The chart of the similarity of updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multilora.analysis.figure_parts import ALL_KINDS, ALL_LAYERS
from multilora.charts.chart import Chart, Row, Selector

PHI_GRID = (1, 2, 4, 8, 16, 32, 64)


def similarity_chart(similarities: Sequence[Mapping[str, Any]]) -> Chart:
    """phi(i, j) between pairs of updates as a heatmap."""
    rows: list[Row] = []
    for pair in similarities:
        for matrix in pair["matrices"]:
            places = [(k, count) for k, count in enumerate(matrix["grid"]) if count in PHI_GRID]
            rows += [
                {
                    "pair": f"{pair['first']} – {pair['second']}",
                    "kind": matrix["kind"],
                    "layer": matrix["layer"],
                    "side": f"{side} vectors",
                    "i": i,
                    "j": j,
                    "phi": matrix[side][a][b],
                    "expected": round(matrix[f"expected_{side}"][a][b], 4),
                }
                for side in ("left", "right")
                for a, i in places
                for b, j in places
            ]
    pairs = list(dict.fromkeys(str(row["pair"]) for row in rows))
    kinds = list(dict.fromkeys(str(row["kind"]) for row in rows))
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    scale, legend = {"scheme": "viridis", "domain": [0, 1]}, {"orient": "top", "gradientLength": 180}
    axis = {"type": "ordinal", "axis": {"labelAngle": 0}}
    mean = {"field": "mean_phi", "type": "quantitative"}
    view = {
        "layer": [
            {
                "mark": {"type": "rect", "tooltip": True},
                "encoding": {"color": {**mean, "title": "phi", "scale": scale, "legend": legend}},
            },
            {
                "mark": {"type": "text", "fontSize": 11},
                "encoding": {
                    "text": {**mean, "format": ".2f"},
                    "color": {"condition": {"test": "datum.mean_phi > 0.6", "value": "black"}, "value": "white"},
                },
            },
        ],
        "encoding": {
            "x": {"field": "j", "title": "j: largest singular vectors of the second", **axis},
            "y": {"field": "i", "title": "i: of the first", **axis},
        },
    }
    aggregate = [
        {"op": "mean", "field": "phi", "as": "mean_phi"},
        {"op": "mean", "field": "expected", "as": "mean_expected"},
    ]
    return Chart(
        "similarity",
        "Similarity of the updates, phi(i, j)",
        "Overlap of the subspaces of the i largest singular vectors of the first update and the j largest of the "
        "second: 1 if one contains the other, 0 if they are orthogonal; means over the selected matrices. The tooltip "
        "shows the expectation for random subspaces.",
        rows,
        view,
        transform=[{"aggregate": aggregate, "groupby": ["i", "j", "pair"]}],
        selectors=[
            Selector("pair", "pair", pairs),
            Selector("side", "side", ["left vectors", "right vectors"]),
            Selector("kind", "module type", kinds, ALL_KINDS),
            Selector("layer", "layer", layers, ALL_LAYERS),
        ],
        facet="pair",
    )
