"""One noise at several strengths of a negative prompt, side by side."""
