"""Prompts of any length, with weights, networks and embeddings in them: text -> chunks of tokens -> rows."""
