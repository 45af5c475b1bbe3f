"""Training on transformers' Trainer: arguments, the trainer with its loss per task, and the run."""
