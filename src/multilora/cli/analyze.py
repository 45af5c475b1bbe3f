"""`multilora analyze`."""

from __future__ import annotations

from multilora.cli.options import AsJson, RunPath


def analyze(run: RunPath, json: AsJson = False) -> None:
    """Compute the singular values of the weight update of every adapted matrix, with a figure."""
    from pathlib import Path

    from multilora.analysis.analyze import analyze as analyze_run
    from multilora.cli.show import show_json, table

    spectrum = analyze_run(run)
    if json:
        show_json(spectrum.as_dict())
        return
    rows = []
    for kind, matrices in [*spectrum.by_kind().items(), ("all", spectrum.matrices)]:
        mean = spectrum.mean(matrices)
        rows.append(
            [
                kind,
                str(len(matrices)),
                f"{mean['norm']:.3f}",
                f"{mean['top1_energy']:.2f}",
                f"{mean['top4_energy']:.2f}",
                f"{mean['effective_rank']:.1f}",
                f"{mean['stable_rank']:.1f}",
                f"{mean['participation_ratio']:.1f}",
            ]
        )
    columns = [
        "module",
        "matrices",
        "norm",
        "top-1 energy",
        "top-4 energy",
        "effective rank",
        "stable rank",
        "participation ratio",
    ]
    table(f"spectrum of Delta W ({spectrum.method}), means over layers", columns, rows)
    print(f"figure: {Path(run) / 'analysis' / 'spectrum.png'}")
