"""Generated text: continuous batches over slots of a cache."""
