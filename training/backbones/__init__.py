"""One file a backbone: load, encode prompts, predict, eps to x0, decode."""
