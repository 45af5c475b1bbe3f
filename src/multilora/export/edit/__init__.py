"""Change an adapter before it is exported: truncate, prune, combine."""
