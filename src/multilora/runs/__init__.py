"""Runs: training and evaluating a recipe, and the directory that holds the result."""
