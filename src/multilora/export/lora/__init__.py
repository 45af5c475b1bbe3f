"""Export as a plain LoRA."""
