"""Training with the transformers Trainer: arguments, the multi-task trainer, checkpoints and sharding."""
