"""Prompts on their way to a network: read, ordered, encoded."""
