"""Every task scored its own way: choices by log-likelihood, generated text by its metric, all by loss."""
