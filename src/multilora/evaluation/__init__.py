"""Evaluation: choices by log-likelihood, generated text by the task's metrics, all tasks by loss."""
