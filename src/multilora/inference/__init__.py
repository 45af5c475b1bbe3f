"""Text from a model that is in memory: prompts, chats and options of generation."""
