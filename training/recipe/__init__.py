"""The settings of a run and their YAML: what may be set, checked; the files that come with the trainer."""
