"""`multilora eval --harness`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multilora.cli.imports import heavy_imports
from multilora.processes import is_main_process


def show_harness(
    models: Sequence[str],
    names: str,
    tasks: str | None,
    *,
    shots: int | None,
    limit: int | None,
    include_path: str | None,
    json: bool,
) -> None:
    """Score models on lm-eval's tasks and show one table.

    Args:
        models: runs, adapters, models or names on the hub
        names: of lm-eval's tasks, separated by commas
        tasks, shots, limit, include_path: see `evaluate_models_with_harness`
        json: print JSON instead of a table
    """
    from multilora.cli.show import show_json, table

    with heavy_imports():
        from multilora.harness.models import evaluate_models_with_harness

    listed = [name.strip() for name in names.split(",") if name.strip()]
    results = evaluate_models_with_harness(models, listed, tasks, shots=shots, limit=limit, include_path=include_path)
    if not is_main_process():
        return
    if json:
        show_json(results)
        return
    found = {label: result for label, result in results.items() if result is not None}
    first = next(iter(found.values()))
    rows = []
    for kind in ("groups", "tasks"):
        for name, entry in first[kind].items():
            for number, metric in enumerate(entry["metrics"]):
                facts = [f"v{entry['version']}", _text(entry["shots"]), f"{entry['n']:,}"]
                values = [_cell(result[kind][name]["metrics"][metric]) for result in found.values()]
                rows.append(["" if number else name, metric, *([""] * 3 if number else facts), *values])
    title = "lm-eval's metrics ± one standard error; accuracies and matches in percent"
    table(title, ["task", "metric", "version", "shots", "n", *found], rows, keys=2)
    print(f"protocol: lm-eval {first['lm_eval']}" + _limit_note(limit))


def _limit_note(limit: int | None) -> str:
    return "" if limit is None else f"; the first {limit:,} documents of each task"


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def _cell(metric: Mapping[str, Any]) -> str:
    """A value and its standard error: in percent if it is in [0, 1] and higher is better, else as it is."""
    value, stderr = metric["value"], metric["stderr"]
    percent = 0 <= value <= 1 and metric["higher_is_better"]
    text = f"{100 * value:.1f}" if percent else f"{value:.4g}"
    if stderr is None:
        return text
    return f"{text} ± {100 * stderr:.1f}" if percent else f"{text} ± {stderr:.2g}"
