"""Where in a finished picture the negative prompt acts, or a word of it."""
