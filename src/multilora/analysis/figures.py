"""Charts of an analysis: singular values, dominance, branches, similarity, intruder dimensions.

They are made of JSON values, as `Analysis.as_dict` returns and the files of an analysis hold them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multilora.analysis.branch_figures import branches_chart, intruders_chart
from multilora.analysis.figure_parts import (
    ALL_KINDS,
    ALL_LAYERS,
    Spectra,
    kinds_of,
    layers_of,
    lines_by_layer,
    matrices_of,
    methods_of,
)
from multilora.analysis.similarity_figure import similarity_chart
from multilora.charts.chart import Chart, Row, Selector
from multilora.charts.styles import method_scales, series_colours

LONGEST = 64  # singular values per matrix that are drawn
FLOOR = 1e-6  # smaller shares of the largest singular value are rounding errors of the weights; they are not drawn
MEASURES = {
    "top1_energy": "energy in the top 1",
    "top4_energy": "energy in the top 4",
    "effective_rank": "effective rank",
    "stable_rank": "stable rank",
    "participation_ratio": "participation ratio",
    "norm": "norm",
    "relative_norm": "norm / norm of the base",
}


def analysis_charts(spectra: Spectra, similarities: Sequence[Mapping[str, Any]] = ()) -> list[Chart]:
    """All charts for which there are data.

    Args:
        spectra: label -> `Spectrum.as_dict`
        similarities: items of `Similarity.as_dict`
    """
    charts = [singular_values_chart(spectra), dominance_chart(spectra), branches_chart(spectra)]
    charts = [chart for chart in (*charts, intruders_chart(spectra)) if chart.rows]
    if any(item["matrices"] for item in similarities):
        charts.append(similarity_chart(similarities))
    return charts


def singular_values_chart(spectra: Spectra) -> Chart:
    """Singular values over the largest one, by method, or by module type for a single model."""
    single = len(spectra) == 1
    rows: list[Row] = []
    for label, matrix in matrices_of(spectra):
        values = matrix["singular_values"][:LONGEST]
        if not values or not values[0]:
            continue
        rows += [
            {
                "method": label,
                "layer": matrix["layer"],
                "kind": matrix["kind"],
                "name": matrix["name"],
                "number": number,
                "share": value / values[0],
            }
            for number, value in enumerate(values, 1)
            if value > FLOOR * values[0]
        ]
    view = {
        "mark": {"type": "line", "strokeWidth": 2, "tooltip": True},
        "encoding": {
            "x": {"field": "number", "type": "quantitative", "title": "number of the singular value"},
            "y": {
                "field": "share",
                "aggregate": "mean",
                "type": "quantitative",
                "scale": {"type": "log"},
                "title": "singular value / largest",
            },
            **(series_colours("kind", kinds_of(spectra)) if single else method_scales(methods_of(spectra))),
        },
    }
    return Chart(
        "singular_values",
        "Singular values of the weight update",
        "Singular values of Delta W divided by the largest of the matrix, on a logarithmic scale, against their "
        f"number; means over the selected matrices, one line per {'module type' if single else 'method'}. In a flat "
        "line many directions contribute.",
        rows,
        view,
        selectors=[
            Selector("kind", "module type", kinds_of(spectra), "all" if single else ALL_KINDS),
            Selector("layer", "layer", layers_of(spectra), ALL_LAYERS),
        ],
        facet=None if single else "kind",
    )


def dominance_chart(spectra: Spectra) -> Chart:
    """How concentrated the update is, by layer; by method, or by module type for a single model."""
    single = len(spectra) == 1
    rows = [
        {
            "method": label,
            "layer": matrix["layer"],
            "kind": matrix["kind"],
            "measure": title,
            "value": matrix["measures"][name],
        }
        for label, matrix in matrices_of(spectra)
        for name, title in MEASURES.items()
        if matrix["measures"].get(name) is not None and matrix["layer"] is not None
    ]
    measures = [title for title in MEASURES.values() if any(row["measure"] == title for row in rows)]
    series = series_colours("kind", kinds_of(spectra)) if single else method_scales(methods_of(spectra))
    selectors = [Selector("measure", "measure", measures)]
    if not single:
        selectors.append(Selector("kind", "module type", kinds_of(spectra), ALL_KINDS))
    view = lines_by_layer(series)
    return Chart(
        "dominance",
        "Dominance of the largest directions by layer",
        "Measures of the spectrum of Delta W against the layer, means over the selected matrices. A high energy in the "
        "top 1 or top 4, and a low rank, mean that few directions dominate.",
        rows,
        view,
        selectors=selectors,
        facet=None if single else "kind",
    )
