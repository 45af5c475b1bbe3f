"""Export as a model with the update merged into its weights."""
