"""What a training step needs, computed without weights, data or devices."""
