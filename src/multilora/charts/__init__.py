"""Charts as Vega-Lite specifications: one for the page and for files, with the same colours everywhere."""
