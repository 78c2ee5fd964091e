"""The command line, one file a command: its arguments, and the few lines that call the work."""
