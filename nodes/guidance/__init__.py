"""How a negative prompt reaches a layer."""
