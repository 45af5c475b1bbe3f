"""The charts of a model card: images beside it that the card shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from multilora.charts.chart import Chart
from multilora.charts.files import can_draw, draw
from multilora.charts.run_charts import before_after_chart, losses_chart
from multilora.runs.card_facts import evaluation_of, readable
from multilora.runs.directory import METRICS_FILE, Run


@dataclass(frozen=True)
class CardImage:
    """An image of a card.

    file: its name, in the folder of the card
    alternative: what it shows, for readers who cannot see it
    """

    file: str
    alternative: str


def score_chart(run: Run) -> Chart | None:
    """The scores before and after training; None if they are not known of the run's weights.

    Raises:
        RunDirectoryError: the run is damaged.
    """
    with readable(run):
        evaluation = evaluation_of(run)
        after = evaluation.get("after", {})
        before = {task: evaluation["before"].get(task, {"value": None}) for task in after}
        chart = before_after_chart(before, after, run.recipe.adapter.method)
        return chart if chart.rows else None


def loss_chart(run: Run) -> Chart | None:
    """The training loss per task; None without a log, or with one of fewer than two steps, which make no line.

    Raises:
        RunDirectoryError: the run is damaged.
    """
    if not (run.path / METRICS_FILE).is_file():
        return None
    with readable(run):
        chart = losses_chart(run.metrics, [section.name for section in run.recipe.tasks])
        return chart if len({row["step"] for row in chart.rows}) > 1 else None


def draw_card_charts(charts: dict[str, Chart], folder: Path) -> dict[str, CardImage]:
    """Draw the charts as PNG files if vl-convert is installed; without it, there are none.

    Args:
        charts: section of the card -> chart
        folder: of the card

    Returns:
        section of the card -> image
    """
    return dict(_drawn(charts, folder)) if can_draw() else {}


def _drawn(charts: dict[str, Chart], folder: Path) -> Iterator[tuple[str, CardImage]]:
    for section, chart in charts.items():
        file = draw(chart, folder / f"{chart.name}.png")
        yield section, CardImage(file.name, f"{chart.title}. {chart.description}")
