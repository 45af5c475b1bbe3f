"""How similar the updates of a study are: between methods, to full fine-tuning, and between seeds."""

from __future__ import annotations

from pathlib import Path

from multilora.analysis.compare import Analysis, analyze_updates
from multilora.analysis.sources import UpdateSource, open_updates
from multilora.errors import AdapterError, InputError
from multilora.files import write_json
from multilora.foreign_errors import own_errors
from multilora.methods import FULL
from multilora.runs.directory import Run
from multilora.study.cells import CELLS
from multilora.study.stored import adapter_methods, read_results, read_study
from multilora.study.tables import RESULTS

SIMILARITY_FILE = f"{RESULTS}/similarity.json"


@own_errors
def compare_finals(path: str | Path) -> Analysis:
    """Compare the updates of the final runs, and write what is found to `results/similarity.json`.

    Of the first seed, every method is compared with full fine-tuning, or with the reference if no method is `full`. Of
    every method, the first two seeds are compared with each other.

    Args:
        path: the folder of a study

    Raises:
        InputError: it has no results, or no two final runs that can be compared.
    """
    path = Path(path)
    results, methods = read_results(path), adapter_methods(read_study(path))
    finals: dict[str, list[tuple[str, Path]]] = {}
    for run in results["runs"]:
        folder = path / CELLS / run["id"]
        if run["stage"] == "final" and "scores" in run and folder.is_dir():
            finals.setdefault(run["method"], []).append((f"{run['method']}, seed {run['seed']}", folder))
    full = next((name for name in finals if methods[name] == FULL), str(results["reference"]))
    pairs = [(runs[0][0], finals[full][0][0]) for name, runs in finals.items() if name != full and full in finals]
    pairs += [(runs[0][0], runs[1][0]) for runs in finals.values() if len(runs) > 1]
    sources, notes = [], []
    for label, folder in (run for runs in finals.values() for run in runs[:2]):
        try:
            sources.append(_open(label, folder))
        except AdapterError as error:  # such as a method that only changes norms
            notes.append(f"{label} is not compared: {error}")
    opened = {source.label for source in sources}
    pairs = [pair for pair in pairs if opened.issuperset(pair)]
    if not pairs:
        raise InputError(f"{path}: has no two final runs whose updates can be compared; {'; '.join(notes) or 'run it'}")
    analysis = analyze_updates(sources, pairs)
    analysis.notes.extend(notes)
    write_json(path / SIMILARITY_FILE, [item.as_dict() for item in analysis.similarities])
    return analysis


def _open(label: str, folder: Path) -> UpdateSource:
    source = open_updates(Run(folder))
    source.label = label
    return source
