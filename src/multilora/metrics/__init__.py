"""Metrics: how a task's answers become numbers. `METRICS` is the table of all that a recipe can name."""

from multilora.metrics.metric import Metric
from multilora.metrics.table import METRICS, find_metric

__all__ = ["METRICS", "Metric", "find_metric"]
