"""From tasks to token ids in a fixed order: tokenize, mix and plan."""
