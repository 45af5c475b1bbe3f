"""`analyze`: compute and plot the spectra of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from multilora.files import atomic_folder, write_json
from multilora.foreign_errors import own_errors
from multilora.methods import FULL
from multilora.runs.directory import Run

if TYPE_CHECKING:
    from multilora.analysis.spectrum import Spectrum


@own_errors
def analyze(run: Run | str | Path) -> Spectrum:
    """Compute the singular values of Delta W for every adapted matrix; write them and a figure to `analysis/`.

    Raises:
        RunDirectoryError: not a finished run.
        AdapterError: the method has no additive weight update.
    """
    run = run if isinstance(run, Run) else Run(run)
    run.check_writable()
    from multilora.analysis.figures import draw_spectra

    method = run.recipe.adapter.method
    spectrum = spectrum_of(run)
    with atomic_folder(run.path / "analysis") as folder:
        write_json(folder / "spectrum.json", spectrum.as_dict())
        draw_spectra({method: spectrum}, folder / "spectrum.png")
    return spectrum


def spectrum_of(run: Run) -> Spectrum:
    """Compute what `analyze` computes, without writing it.

    Raises:
        AdapterError: the method has no additive weight update.
    """
    # This imports torch, which takes seconds: the run is checked before.
    from multilora.analysis.spectrum import adapter_spectrum, difference_spectrum

    method = run.recipe.adapter.method
    if method == FULL:
        return difference_spectrum(run.load_base(), run.load_model(), method)
    return adapter_spectrum(run.load_model(), method)
