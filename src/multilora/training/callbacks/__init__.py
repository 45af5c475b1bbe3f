"""Callbacks of transformers' Trainer: health of every step, evaluation during training, logging, signals."""
