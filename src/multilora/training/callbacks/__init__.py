"""Trainer callbacks: health checks, evaluation during training, logging, signals."""
