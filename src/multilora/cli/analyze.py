"""`multilora analyze`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from multilora.cli.imports import heavy_imports
from multilora.cli.options import AsJson

if TYPE_CHECKING:
    from pathlib import Path

    from multilora.analysis.compare import Analysis, Similarity
    from multilora.analysis.spectrum import Spectrum

COLUMNS = {
    "norm": "norm",
    "relative_norm": "/ base",
    "top1_energy": "top-1 energy",
    "top4_energy": "top-4 energy",
    "effective_rank": "effective rank",
    "stable_rank": "stable rank",
    "participation_ratio": "participation ratio",
}
FORMATS = {"norm": ".3f", "relative_norm": ".4f", "top1_energy": ".2f", "top4_energy": ".2f"}
SHOWN_PHI = (1, 4, 8, 16)


def analyze(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="A run or a study; or adapters, fine-tuned models, hub names."),
    ],
    against: Annotated[
        str | None, typer.Option("--against", metavar="MODEL", help="Compare each with this one, not with each other.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="What a fine-tuned model, or an adapter, is based on.")
    ] = None,
    intruders: Annotated[
        bool, typer.Option("--intruders", help="Count intruder dimensions; takes two dense decompositions per matrix.")
    ] = False,
    randomised: Annotated[
        int | None,
        typer.Option(
            "--randomised", min=1, metavar="K", help="Only the K largest singular values of dense updates, with error."
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="New folder for numbers and figures of several models.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Compute the singular values of weight updates, and how similar the updates of several models are."""
    from multilora.cli.show import show_json
    from multilora.errors import InputError

    if len(models) == 1 and against is None:
        if out is not None:
            raise InputError("--out has no effect on a single model; leave it out: a run has its folder analysis/")
        _one(models[0], base, intruders, randomised, json)
        return
    with heavy_imports():
        from multilora.analysis.analyze import compare_updates
    from multilora.analysis.compare import Options

    options = Options(intruders=intruders, randomised=randomised)
    analysis = compare_updates(models, against, base=base, out=out, options=options)
    if json:
        show_json(analysis.as_dict())
        return
    _show(analysis)
    if out is not None:
        print(f"numbers and figures: {out}")


def _one(model: str, base: str | None, intruders: bool, randomised: int | None, json: bool) -> None:
    from pathlib import Path

    from multilora.runs.directory import RECIPE_FILE, Run

    path = Path(model)
    is_run = (path / RECIPE_FILE).exists()
    if is_run or (base is None and not path.exists()):
        Run(path)  # before the seconds that importing torch takes
    if (path / "study.yaml").is_file() and not is_run:
        _study(path, json)
        return
    from multilora.analysis.analyze import ANALYSIS_FOLDER

    with heavy_imports():
        from multilora.analysis.analyze import analyze as analyze_model
    from multilora.analysis.compare import Options
    from multilora.cli.show import show_json

    spectrum = analyze_model(model, base=base, options=Options(intruders=intruders, randomised=randomised))
    if json:
        show_json(spectrum.as_dict())
        return
    _show_spectrum(spectrum.method, spectrum)
    if is_run:
        from multilora.charts.files import can_draw

        print(f"numbers and figures: {path / ANALYSIS_FOLDER}")
        print(f"next: multilora report {path}")
        if not can_draw():
            print("no images: vl-convert is not installed (pip install multilora[report])")


def _study(path: Path, json: bool) -> None:
    from multilora.cli.show import show_json
    from multilora.study.subspaces import SIMILARITY_FILE, compare_finals

    analysis = compare_finals(path)
    if json:
        show_json(analysis.as_dict())
        return
    for similarity in analysis.similarities:
        if similarity.matrices:
            _show_similarity(similarity)
    for note in analysis.notes:
        print(note)
    print(f"numbers: {path / SIMILARITY_FILE}\nnext: multilora report {path}")


def _show(analysis: Analysis) -> None:
    for label, spectrum in analysis.spectra.items():
        _show_spectrum(label if label == spectrum.method else f"{label}, {spectrum.method}", spectrum)
    for similarity in analysis.similarities:
        if similarity.matrices:
            _show_similarity(similarity)
    for note in analysis.notes:
        print(note)


def _show_spectrum(label: str, spectrum: Spectrum) -> None:
    from multilora.cli.show import table

    rows = []
    has_intruders = spectrum.intruders() is not None
    for kind, matrices in [*spectrum.by_kind().items(), ("all", spectrum.matrices)]:
        mean = spectrum.mean(matrices)
        row = [kind, str(len(matrices)), *(_number(mean[name], FORMATS.get(name, ".1f")) for name in COLUMNS)]
        intruders = spectrum.intruders(matrices)
        if has_intruders:
            row.append("–" if intruders is None else f"{intruders['count']:.0f} of {intruders['examined']:.0f}")
        rows.append(row)
    columns = ["module", "matrices", *COLUMNS.values(), *(["intruders"] if has_intruders else [])]
    table(f"spectrum of Delta W ({label}), means over layers", columns, rows)
    residuals = [matrix.residual / matrix.measures.norm for matrix in spectrum.matrices if matrix.residual]
    if residuals:
        print(f"randomised: the singular values leave out at most {100 * max(residuals):.2g} % of the norm of a matrix")
    if any(matrix.branches for matrix in spectrum.matrices):
        _show_branches(spectrum)


def _show_branches(spectrum: Spectrum) -> None:
    from multilora.cli.show import table

    matrices = [matrix.branches for matrix in spectrum.matrices if matrix.branches]
    rows = []
    for index in range(max(map(len, matrices))):
        pairs = [(branches, branches[index]) for branches in matrices if index < len(branches)]
        overlaps = {
            side: [value for _, branch in pairs for other, value in enumerate(getattr(branch, side)) if other != index]
            for side in ("row_overlap", "column_overlap")
        }
        rows.append(
            [
                str(index + 1),
                _number(_mean([branch.scale_mean_abs for _, branch in pairs]), ".4f"),
                _number(_mean([branch.energy for _, branch in pairs]), ".2f"),
                _number(_mean([branch.change_if_dropped for _, branch in pairs]), ".2f"),
                _number(_mean(overlaps["row_overlap"]), ".3f"),
                _number(_mean(overlaps["column_overlap"]), ".3f"),
            ]
        )
    columns = ["branch", "mean |scale|", "share of energy", "change if dropped", "overlap of inputs", "of outputs"]
    table("branches, means over matrices; change and overlap from 0 to 1", columns, rows)


def _show_similarity(similarity: Similarity) -> None:
    from multilora.cli.show import say, table

    counts = [count for count in SHOWN_PHI if any(matrix.at(count) is not None for matrix in similarity.matrices)]
    rows = []
    for kind, matrices in [*similarity.by_kind().items(), ("all", similarity.matrices)]:
        row = [kind, str(len(matrices))]
        for count in counts:
            found = [value for matrix in matrices if (value := matrix.at(count)) is not None]
            left, right, *expected = ([item[k] for item in found] for k in range(4))
            random = _mean([value for values in expected for value in values])
            row.append(f"{_number(_mean(left))} / {_number(_mean(right))} ({_number(random)})")
        rows.append(row)
    columns = ["module", "matrices", *(f"phi({count},{count})" for count in counts)]
    say(f"similarity of {similarity.first} and {similarity.second}, from 0 to 1")
    table("left / right singular vectors (expected of random ones), means over layers", columns, rows)
    if len(counts) < len(SHOWN_PHI):
        missing = SHOWN_PHI[len(counts)]
        say(f"phi({missing},{missing}) is not defined: an update has fewer than {missing} singular values")


def _mean(values: list[float]) -> float:
    known = [value for value in values if value == value]  # not NaN
    return sum(known) / len(known) if known else float("nan")


def _number(value: float, form: str = ".2f") -> str:
    return format(value, form) if value == value else "–"
