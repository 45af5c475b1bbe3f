"""Comparison of methods on the same plan."""
