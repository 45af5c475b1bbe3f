"""What the charts of an analysis share: reading its JSON values, and lines by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ALL_KINDS, ALL_LAYERS = "all, averaged", "all, averaged"
# Label -> `Spectrum.as_dict`.
Spectra = Mapping[str, Mapping[str, Any]]


def matrices_of(spectra: Spectra) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yield (label, matrix) for every matrix of every model."""
    for label, spectrum in spectra.items():
        for matrix in spectrum["matrices"]:
            yield label, matrix


def kinds_of(spectra: Spectra) -> list[str]:
    """The module types, in order of appearance."""
    return list(dict.fromkeys(matrix["kind"] for _, matrix in matrices_of(spectra)))


def layers_of(spectra: Spectra) -> list[int]:
    """The numbers of the layers, sorted."""
    return sorted({matrix["layer"] for _, matrix in matrices_of(spectra) if matrix["layer"] is not None})


def methods_of(spectra: Spectra) -> dict[str, str]:
    """Label -> method."""
    return {label: spectrum["method"] for label, spectrum in spectra.items()}


def lines_by_layer(series: Mapping[str, Any]) -> dict[str, Any]:
    """The view of a chart of the mean `value` against the layer, one line per series.

    Args:
        series: encoding channels that tell the lines apart
    """
    return {
        "mark": {"type": "line", "strokeWidth": 2, "point": True, "tooltip": True},
        "encoding": {
            "x": {"field": "layer", "type": "ordinal", "title": "layer", "axis": {"labelAngle": 0}},
            "y": {"field": "value", "aggregate": "mean", "type": "quantitative", "title": None},
            **series,
        },
    }
