"""The results of studies in docs/results.md, generated from JSON so that no figure is typed by hand.

    python benchmarks/study_results.py add NAME STUDY_FOLDER --title TITLE --command COMMAND
    python benchmarks/study_results.py page

`add` copies the results of a finished study to `benchmarks/results/studies/NAME.json`. `page` writes the text
between the marks in docs/results.md, and the charts to docs/images/studies/ (needs vl-convert).
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from multilora.charts.files import draw
from multilora.files import write_json
from multilora.report.study_charts import final_scores_chart, search_chart
from multilora.study.stored import adapter_methods, read_results, read_study, restore_bounds
from multilora.study.table_text import markdown_table
from multilora.study.tables import RELATION, curve_table, difference_table, method_table, relation_table

REPOSITORY = Path(__file__).resolve().parents[1]
STUDIES = REPOSITORY / "benchmarks" / "results" / "studies"
PAGE = REPOSITORY / "docs" / "results.md"
IMAGES = REPOSITORY / "docs" / "images" / "studies"
START = "<!-- studies: written by `python benchmarks/study_results.py page` -->"
END = "<!-- end of studies -->"
CHARTS = {"search": search_chart, "scores": final_scores_chart}


def add(name: str, folder: Path, title: str, command: str) -> Path:
    """Copy the results of a study; raises ValueError if a cell is not finished."""
    results, study = read_results(folder), read_study(folder)
    open_cells = {state: count for state, count in results["cells"].items() if count and state != "finished"}
    if open_cells:
        raise ValueError(f"{folder}: not finished: {open_cells}")
    results["other_cells"] = []
    data = study["recipe"].get("data") or {}
    rows = f"packed rows of {data['max_length']} tokens" if data.get("packing") else "examples"
    facts = {
        "title": title,
        "command": command,
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "methods": adapter_methods(study),
        "training": study["recipe"]["training"],
        "rows": rows,
        "examples_per_task": study["recipe"]["evaluation"]["max_examples"],
        "search": study["search"],
        "seeds": study["seeds"],
    }
    STUDIES.mkdir(parents=True, exist_ok=True)
    path = STUDIES / f"{name}.json"
    write_json(path, {**facts, "results": results})
    return path


def read(path: Path) -> dict[str, Any]:
    """A committed study, with the infinite bounds that JSON does not have."""
    study: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    restore_bounds(study["results"])
    return study


def section(name: str, study: Mapping[str, Any]) -> str:
    """The text about one study."""
    results, training, search = study["results"], study["training"], study["search"]
    trials = len([run for run in results["runs"] if run["stage"] == "trial"])
    parts = [
        f"### {study['title']}",
        f"`{study['command']}` on {study['machine']}: {training['max_steps']} steps of "
        f"{training['per_device_train_batch_size']} {study.get('rows', 'examples')}; "
        f"{search['trials']} settings per method were tried on "
        f"the validation split ({trials} trials, chosen by {search['metric']}), then {len(study['seeds'])} other seeds "
        f"were scored on at most {study['examples_per_task']} held-out examples per task "
        f"(`benchmarks/results/studies/{name}.json`).",
        markdown_table(*method_table(results)),
        "Mean ± standard deviation over seeds; scores in percent, losses and forgetting in nats per token.",
    ]
    if results["differences"]:
        reference = results["reference"]
        parts += [
            f"Differences to {reference}, with 95 % intervals nested over seeds and items; p is adjusted for the "
            "number of methods (Holm); wins, ties and losses count tasks:",
            markdown_table(*difference_table(results)),
        ]
    if results["forgetting_by_intruders"] is not None:
        parts += [RELATION, markdown_table(*relation_table(results))]
    parts += [
        "Trials, on the validation split:",
        markdown_table(*curve_table(results)),
        f"![Validation loss of every method against the tried value](images/studies/{name}_search.png)",
        f"![Score of every final run, by method](images/studies/{name}_scores.png)",
    ]
    if results["notes"]:
        parts.append("\n".join(f"- {note}." for note in results["notes"]))
    return "\n\n".join(parts)


def page_text(text: str) -> str:
    """The page with the studies of today between its marks; raises ValueError if a mark is missing."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{PAGE}: has no {START} ... {END}")
    studies = [section(path.stem, read(path)) for path in sorted(STUDIES.glob("*.json"))]
    return f"{before}{start}\n\n" + "\n\n".join(studies) + f"\n\n{end}{after}"


def draw_charts() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    for path in sorted(STUDIES.glob("*.json")):
        study = read(path)
        for kind, chart in CHARTS.items():
            draw(chart(study["results"], study["methods"]), IMAGES / f"{path.stem}_{kind}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    adding = verbs.add_parser("add")
    adding.add_argument("name")
    adding.add_argument("folder", type=Path)
    adding.add_argument("--title", required=True)
    adding.add_argument("--command", required=True)
    verbs.add_parser("page")
    options = parser.parse_args()
    if options.verb == "add":
        print(add(options.name, options.folder, options.title, options.command))
        return
    PAGE.write_text(page_text(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    draw_charts()


if __name__ == "__main__":
    main()
