"""Commands that load an export into the programs that serve models."""
