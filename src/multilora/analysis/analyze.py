"""`analyze`: compute and plot the spectra of a run."""

from __future__ import annotations

from pathlib import Path

from multilora.analysis.figures import draw_spectra
from multilora.analysis.spectrum import Spectrum, adapter_spectrum, difference_spectrum
from multilora.files import atomic_folder, write_json
from multilora.foreign_errors import own_errors
from multilora.methods import FULL
from multilora.runs.directory import Run


@own_errors
def analyze(run: Run | str | Path) -> Spectrum:
    """Compute the singular values of Delta W for every adapted matrix; write them and a figure to `analysis/`.

    Raises:
        RunDirectoryError: not a finished run.
        AdapterError: the method has no additive weight update.
    """
    run = run if isinstance(run, Run) else Run(run)
    run.check_writable()
    method = run.recipe.adapter.method
    if method == FULL:
        spectrum = difference_spectrum(run.load_base(), run.load_model(), method)
    else:
        spectrum = adapter_spectrum(run.load_model(), method)
    with atomic_folder(run.path / "analysis") as folder:
        write_json(folder / "spectrum.json", spectrum.as_dict())
        draw_spectra({method: spectrum}, folder / "spectrum.png")
    return spectrum
