"""From tasks to token ids in a settled order: tokenize, mixture, plan."""
