"""Compare an export with its original."""
