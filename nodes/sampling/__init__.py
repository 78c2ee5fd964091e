"""How a one-step model is run."""
