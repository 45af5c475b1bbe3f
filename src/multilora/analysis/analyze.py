"""`analyze`: the spectra of one update; `compare_updates`: of several, with their similarity."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multilora.errors import AdapterError, InputError
from multilora.files import atomic_folder, write_json, write_text
from multilora.foreign_errors import own_errors
from multilora.runs.directory import RECIPE_FILE, Run

if TYPE_CHECKING:
    from multilora.analysis.compare import Analysis, Options
    from multilora.analysis.spectrum import Spectrum

ANALYSIS_FOLDER, SPECTRUM_FILE, ANALYSIS_FILE = "analysis", "spectrum.json", "analysis.json"


@own_errors
def analyze(run: Run | str | Path | Any, *, base: str | None = None, options: Options | None = None) -> Spectrum:
    """Compute the singular values of Delta W for every adapted matrix.

    Of a run, writes them, tables and figures to its folder `analysis/`.

    Args:
        run: a run, the folder of a PEFT adapter, a fine-tuned model, or a `PeftModel`
        base: of a fine-tuned model, or of an adapter whose config names none
        options: what is computed; by default without intruder dimensions, and exact

    Raises:
        InputError: there is nothing that can be analysed, or the base is missing.
        AdapterError: the method is not a change of weight matrices.
    """
    if isinstance(run, str | Path):
        is_missing = base is None and not Path(run).exists()
        run = Run(run) if is_missing or (Path(run) / RECIPE_FILE).exists() else run
    if isinstance(run, Run):
        run.check_writable()
    spectrum = spectrum_of(run, base=base, options=options)
    if isinstance(run, Run):
        from multilora.analysis.compare import Analysis

        with atomic_folder(run.path / ANALYSIS_FOLDER) as folder:
            write_json(folder / SPECTRUM_FILE, spectrum.as_dict())
            write_analysis(Analysis({spectrum.method: spectrum}), folder)
    return spectrum


def spectrum_of(source: Run | str | Path | Any, *, base: str | None = None, options: Options | None = None) -> Spectrum:
    """Compute what `analyze` computes, without writing it.

    Raises:
        InputError, AdapterError: as `analyze`.
    """
    # These import torch, which takes seconds: the run is checked before.
    from multilora.analysis.compare import analyze_updates
    from multilora.analysis.sources import open_updates

    opened = open_updates(source, base=base)
    spectrum = analyze_updates([opened], options=options).spectra[opened.label]
    if not spectrum.matrices:
        raise AdapterError(
            f"{opened.label}: method {opened.method!r} adapts no weight matrix; analyze a run of another method"
        )
    return spectrum


@own_errors
def compare_updates(
    sources: Sequence[Run | str | Path | Any],
    against: Run | str | Path | Any | None = None,
    *,
    base: str | None = None,
    out: str | Path | None = None,
    options: Options | None = None,
) -> Analysis:
    """Compute the spectra of several updates, and how similar they are.

    Args:
        sources: as for `analyze`, at least two, or one and `against`
        against: compare each with this one; by default, every two are compared
        base: of all fine-tuned models among them, and of adapters whose config names none
        out: a new folder for numbers and figures; by default nothing is written
        options: what is computed

    Raises:
        InputError: a source cannot be analysed, or they do not have the same base.
        RunDirectoryError: `out` is taken.
    """
    if len(sources) + (against is not None) < 2:
        raise InputError(f"got {len(sources)} models, expected at least two, or one and `against`")
    from multilora.analysis.compare import analyze_updates
    from multilora.analysis.sources import open_updates
    from multilora.runs.directory import check_free

    if out is not None:
        check_free(Path(out))
    opened = [open_updates(source, base=base) for source in sources]
    labels = [source.label for source in opened]
    pairs = list(itertools.combinations(labels, 2))
    if against is not None:
        opened.append(open_updates(against, base=base))
        pairs = [(label, opened[-1].label) for label in labels]
    analysis = analyze_updates(opened, pairs, options)
    if out is not None:
        with atomic_folder(Path(out)) as folder:
            write_json(folder / ANALYSIS_FILE, analysis.as_dict())
            write_analysis(analysis, folder)
    return analysis


def write_analysis(analysis: Analysis, folder: Path) -> None:
    """Write the tables of an analysis as CSV, and its figures."""
    from multilora.analysis.figures import analysis_charts
    from multilora.analysis.tables import csv_tables
    from multilora.charts.files import write_charts

    for name, text in csv_tables(analysis).items():
        write_text(folder / f"{name}.csv", text)
    values = analysis.as_dict()
    write_charts(analysis_charts(values["spectra"], values["similarities"]), folder)
