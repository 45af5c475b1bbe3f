"""Figures of spectra and losses; no display is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from multilora.analysis.spectrum import MatrixSpectrum, Spectrum


def mean_normalised(matrices: list[MatrixSpectrum]) -> Any:
    """Return the mean of sigma / sigma_1 over matrices, [k], cut to the shortest spectrum."""
    rows = [np.asarray(m.singular_values) / m.singular_values[0] for m in matrices if m.measures.norm > 0]
    if not rows:
        return np.zeros(0)
    length = min(len(row) for row in rows)
    return np.mean([row[:length] for row in rows], axis=0)


@contextmanager
def _panels(names: Sequence[str], path: Path, y_label: str, *, share_y: bool) -> Iterator[list[Any]]:
    """Yield one axis per name, at most four in a row; at the end, add a common legend and save the figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(4, max(1, len(names)))
    rows = max(1, -(-len(names) // columns))
    figure = Figure(figsize=(3.4 * columns, 2.8 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=share_y).flat)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes, names, strict=False):
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(y_label)
    yield axes[: len(names)]
    handles, legend_names = axes[0].get_legend_handles_labels()
    figure.legend(handles, legend_names, loc="outside upper center", ncols=max(1, len(legend_names)))
    figure.savefig(path, dpi=110)


def draw_spectra(spectra: Mapping[str, Spectrum], path: Path, *, longest: int = 64) -> None:
    """Draw one panel per module type with the mean normalised spectrum of each method, on a log scale.

    Args:
        spectra: label -> spectrum
        path: of the image; its suffix sets the format
        longest: maximum number of singular values to show
    """
    kinds = list(dict.fromkeys(kind for spectrum in spectra.values() for kind in spectrum.by_kind()))
    with _panels(kinds, path, "sigma / sigma_1, mean over layers", share_y=True) as axes:
        for axis, kind in zip(axes, kinds, strict=True):
            for label, spectrum in spectra.items():
                values = mean_normalised(spectrum.by_kind().get(kind, []))[:longest]
                # Values below 1e-6 of the largest are rounding errors of the weights.
                axis.plot(np.arange(1, len(values) + 1), np.maximum(values, 1e-6), label=label, linewidth=1.5)
            axis.set_yscale("log")
            axis.set_xlabel("singular value")


def draw_losses(metrics: Mapping[str, list[dict[str, float]]], tasks: list[str], path: Path) -> None:
    """Draw one panel per task with the training loss (nats per trained token) of each method over the steps.

    Args:
        metrics: label -> the lines of a run's `metrics.jsonl`
        tasks: task names
        path: of the image; its suffix sets the format
    """
    with _panels(tasks, path, "training loss", share_y=False) as axes:
        for axis, task in zip(axes, tasks, strict=True):
            key = f"loss/{task}"
            for label, lines in metrics.items():
                points = [(line["step"], line[key]) for line in lines if key in line]
                axis.plot([step for step, _ in points], [loss for _, loss in points], label=label, linewidth=1.5)
            axis.set_xlabel("step")
