"""Pictures of what was trained: a reader of run folders and files."""
