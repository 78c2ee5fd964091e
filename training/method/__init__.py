"""PG-SB and nothing else: losses, guidance, the pairs of the warm start, every random number of a step."""
