"""HTML reports of runs, studies and comparisons: one file each, which needs no network."""
