"""What the user got wrong, in one sentence."""


class UserError(Exception):
    """A mistake in a config, a path or a file; its text names the thing and the remedy (exit code 2, no traceback)."""
