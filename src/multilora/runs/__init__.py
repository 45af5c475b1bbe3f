"""Runs: train and evaluate recipes, and the run directory."""
