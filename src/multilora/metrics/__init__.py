"""Metrics: functions that score a task's answers. `METRICS` is the table of built-in metrics."""

from multilora.metrics.metric import Metric
from multilora.metrics.table import METRICS, find_metric

__all__ = ["METRICS", "Metric", "find_metric"]
