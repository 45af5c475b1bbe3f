"""Intervals, standard errors and paired comparisons of scores."""
