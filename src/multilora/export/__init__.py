"""Export: as a plain LoRA adapter (exact), or merged into the base."""
