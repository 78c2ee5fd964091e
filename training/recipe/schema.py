"""Settings as dataclasses with a description and a range each, read from plain YAML values and checked."""

import dataclasses
import difflib
import math
import re
import types
import typing
from typing import Any, Literal

from ..errors import UserError, quoted, quoted_value

REQUIRED = dataclasses.MISSING


def setting(
    default: Any, description: str, *, low: float = -math.inf, high: float = math.inf, empty: bool = False
) -> Any:
    """A field with its description and the closed range that each of its numbers must lie in; `empty` allows ""."""
    metadata = {"description": description, "low": low, "high": high, "empty": empty}
    if isinstance(default, (type, types.FunctionType)):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def plain(value: Any) -> Any:
    """Dataclass values as YAML writes them: lists for tuples."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (tuple, list)) else value


def block(schema: type, content: Any, source: str, prefix: str = "") -> Any:
    """A `schema` object from plain YAML values. Raises UserError that names key, value and what is allowed."""
    if not isinstance(content, dict):
        raise UserError(
            f"{quoted(source)}: {prefix.rstrip('.')} is {quoted_value(content)}; it must be a mapping of settings."
        )
    fields = {field.name: field for field in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    for key in content:
        if key not in fields:
            near = difflib.get_close_matches(quoted(key), fields, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known are: {', '.join(fields)}."
            raise UserError(f"{quoted(source)}: there is no setting `{prefix}{quoted(key)}`; {hint}")
    values = {}
    for name, field in fields.items():
        if name in content:
            values[name] = _value(hints[name], content[name], field.metadata, source, prefix + name)
        elif field.default is REQUIRED and field.default_factory is REQUIRED:
            told = field.metadata["description"]
            raise UserError(f"{quoted(source)}: `{prefix}{name}` is missing; give it: {told}.")
    return schema(**values)


def _value(kind: Any, value: Any, limits: Any, source: str, key: str) -> Any:
    """`value` as `kind`, or UserError. YAML reads 1e-6 as a string, so strings that are numbers count as numbers."""

    def refuse(allowed: str) -> typing.NoReturn:
        raise UserError(f"{quoted(source)}: {key} is {quoted_value(value)}; allowed is {allowed}.")

    if dataclasses.is_dataclass(kind):
        return block(kind, value, source, key + ".")
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in choices:
            return None
        choices = [choice for choice in choices if choice is not type(None)]
        if len(choices) == 2:  # list[str] or one word
            return _value(choices[0 if isinstance(value, list) else 1], value, limits, source, key)
        return _value(choices[0], value, limits, source, key)
    if origin is Literal:
        if isinstance(value, bool) and "no" in choices:  # YAML 1.1 reads a bare `no` as false
            value = "no" if value is False else value
        return value if isinstance(value, str) and value in choices else refuse("one of " + ", ".join(choices))
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(choices):
            refuse(f"a list of {len(choices)} numbers")
        return tuple(_value(inner, item, limits, source, key) for inner, item in zip(choices, value, strict=True))
    if origin is list:
        if not isinstance(value, list) or not value or not all(_is_text(item) and item for item in value):
            refuse("a list of words, at least one")
        return list(value)
    if kind is str:
        fits = _is_text(value) and (value.strip() or limits["empty"])
        return value if fits else refuse("a text" if limits["empty"] else "a text that is not empty")
    if kind is bool:
        return value if isinstance(value, bool) else refuse("true or false")
    low, high = limits["low"], limits["high"]
    allowed = f"{'a whole number' if kind is int else 'a number'} from {low:g} to {high:g}"
    try:
        number = kind(value) if not isinstance(value, bool) else refuse(allowed)
        if not low <= number <= high or (kind is int and number != float(value)):
            refuse(allowed)
    except (TypeError, ValueError, OverflowError):
        refuse(allowed)
    return number


def _is_text(value: Any) -> bool:
    """A string that can name a file and be read by a tokenizer: no NUL, no half of a surrogate pair."""
    return isinstance(value, str) and not re.search("[\0\ud800-\udfff]", value)
