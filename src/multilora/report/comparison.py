"""Report of a comparison: table, figures, recipe and environment."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from multilora.evaluation.task_score import TaskScore
from multilora.files import write_text
from multilora.study.compare import Comparison
from multilora.study.means import mean_loss, mean_value


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the report of a comparison as one HTML file."""
    environment = Environment(
        loader=PackageLoader("multilora.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("comparison.html.jinja").render(**_context(comparison))
    write_text(path, html)


def _context(comparison: Comparison) -> dict[str, Any]:
    rows = [_row("base", None, None, comparison.base, None)]
    for result in comparison.results:
        rows.append(
            _row(
                result.label,
                result.trainable_parameters,
                result.train_seconds,
                result.scores,
                result.spectrum.mean(),
            )
        )
    first = comparison.results[0].run.path
    return {
        "tasks": [{"name": name, "metric": score.metric} for name, score in comparison.base.items()],
        "rows": rows,
        "plan": comparison.plan.as_dict(),
        "examples": [(name, comparison.plan.rendered(name)) for name in comparison.plan.task_names],
        "spectra": _base64(comparison.spectra_figure),
        "losses": _base64(comparison.losses_figure),
        "recipe": comparison.recipe.dump_yaml(),
        "environment": json.loads((first / "environment.json").read_text(encoding="utf-8")),
    }


def _row(
    label: str,
    parameters: int | None,
    seconds: float | None,
    scores: dict[str, TaskScore],
    spectrum: dict[str, float] | None,
) -> dict[str, Any]:
    return {
        "label": label,
        "parameters": parameters,
        "seconds": seconds,
        "scores": list(scores.values()),
        "mean_value": mean_value(scores),
        "mean_loss": mean_loss(scores),
        "spectrum": spectrum,
    }


def _base64(figure: Path) -> str:
    return base64.b64encode(figure.read_bytes()).decode("ascii")
