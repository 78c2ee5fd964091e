"""Every setting in words: its default, its range, what it does and where its default comes from."""

import textwrap

import yaml
from pydantic.fields import FieldInfo

from ..errors import UserError, quoted
from .config import Config
from .schema import Block, allowed, settings_of

WIDTH = 100  # characters


def described(word: str = "") -> str:
    """A paragraph a setting, of those whose name holds `word`. Raises UserError where there is none."""
    found = [(key, field) for key, field in settings_of(Config) if word in key]
    if not found:
        raise UserError(f"No setting's name holds {quoted(word)}; leave the word out to see them all.")
    return "\n".join(_paragraph(key, field) for key, field in found)


def _paragraph(key: str, field: FieldInfo) -> str:
    told = textwrap.fill(field.description, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return f"{key}: {_default(field)}   ({allowed(field)})\n{told}"


def _default(field: FieldInfo) -> str:
    """As YAML writes it; nothing for a block, whose settings follow."""
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Block):
        return "as below"
    return yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=999).split(
        "\n"
    )[0]
