"""The figure of the README: singular values of the weight updates of LoRA, MultiLoRA and full fine-tuning.

`benchmarks/results/spectra.json` has the numbers: those of the final runs of a study, as the chart of its report shows
them, averaged over all weight matrices and seeds. With `--study`, they are taken from the folder of a study first.

Run: python benchmarks/spectra.py [--study studies/nano]   (needs vl-convert)
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from multilora.analysis.analyze import ANALYSIS_FOLDER, SPECTRUM_FILE
from multilora.analysis.figures import singular_values_chart
from multilora.charts.files import draw
from multilora.files import write_json
from multilora.study.cells import CELLS
from multilora.study.stored import adapter_methods, read_results, read_study

REPOSITORY = Path(__file__).resolve().parents[1]
NUMBERS = REPOSITORY / "benchmarks" / "results" / "spectra.json"
IMAGE = REPOSITORY / "docs" / "images" / "spectra.png"


def write_numbers(folder: Path) -> None:
    """Average the singular values of every method over the weight matrices and the seeds."""
    results, study = read_results(folder), read_study(folder)
    shares: dict[tuple[str, int], list[float]] = defaultdict(list)
    for run in results["runs"]:
        if run["stage"] == "final" and "scores" in run:
            file = folder / CELLS / run["id"] / ANALYSIS_FOLDER / SPECTRUM_FILE
            spectrum = json.loads(file.read_text(encoding="utf-8"))
            for row in singular_values_chart({run["method"]: spectrum}).rows:
                shares[run["method"], row["number"]].append(row["share"])
    ranks = {name: values["spectrum"]["effective_rank"] for name, values in results["methods"].items()}
    write_json(
        NUMBERS,
        {
            "base": study["recipe"]["model"]["name_or_path"],
            "training": study["recipe"]["training"],
            "seeds": study["seeds"],
            "methods": adapter_methods(study),
            "settings": {name: values["setting"] for name, values in results["methods"].items()},
            "effective_rank": ranks,
            "rows": [
                {"method": name, "number": number, "share": round(sum(found) / len(found), 6)}
                for (name, number), found in shares.items()
            ],
        },
    )


def draw_figure() -> Path:
    """Draw the numbers as the chart of the reports."""
    values: dict[str, Any] = json.loads(NUMBERS.read_text(encoding="utf-8"))
    chart = singular_values_chart({name: {"method": m, "matrices": []} for name, m in values["methods"].items()})
    IMAGE.parent.mkdir(exist_ok=True)
    return draw(replace(chart, title="Singular values of the weight update", rows=values["rows"]), IMAGE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, help="the folder of a study, from which the numbers are taken")
    arguments = parser.parse_args()
    if arguments.study is not None:
        write_numbers(arguments.study)
    print(draw_figure())
