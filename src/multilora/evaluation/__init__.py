"""Every task scored its own way: choices by log-likelihood, generated text by exact match, all by loss."""
