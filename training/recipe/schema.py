"""Settings as pydantic models, each with default, range and description; and what is wrong with one, in a sentence."""

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, PydanticUndefined

from ..errors import UserError, quoted, quoted_value

REQUIRED = PydanticUndefined
TOGETHER = "together"  # a fault of several settings; its message is the sentence, without place and full stop


class Block(BaseModel):
    """Settings that belong together. An object is unchangeable, and equal to another of the same values."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def setting(default: Any, description: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A field with its description, and the closed range of a number. A function as default makes it each time."""
    if isinstance(default, (type, types.FunctionType)):
        return Field(default_factory=default, description=description)
    return Field(default, description=description, ge=low, le=high)


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):  # for Python also a number
        raise PydanticCustomError("kind", "a truth value")
    return value


def _readable(value: str) -> str:
    """A string that can name a file and be read by a tokenizer: no NUL, no half of a surrogate pair."""
    if re.search("[\0\ud800-\udfff]", value):
        raise PydanticCustomError("kind", "not a text")
    return value


def _not_empty(value: str) -> str:
    if not value.strip():
        raise PydanticCustomError("kind", "empty")
    return value


def _ascending(value: tuple) -> tuple:
    if value[0] > value[1]:
        raise PydanticCustomError("order", "not in order")
    return value


#: YAML reads 1e-6 as a string, so strings that are numbers count as numbers.
Number = Annotated[float, BeforeValidator(_no_truth), Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_no_truth)]
Truth = Annotated[bool, Field(strict=True)]
Text = Annotated[str, AfterValidator(_readable)]
Name = Annotated[Text, AfterValidator(_not_empty)]
Words = Annotated[list[Name], Field(min_length=1)]


def pair(kind: Any, low: float, high: float) -> Any:
    """Two numbers, Number or Whole, each within the closed range."""
    one = Annotated[kind, Field(ge=low, le=high)]
    return tuple[one, one]


def span(kind: Any, low: float, high: float) -> Any:
    """Two such numbers, the smaller one first."""
    return Annotated[pair(kind, low, high), AfterValidator(_ascending)]


def block(schema: type[Block], content: dict[str, Any], where: Callable[[str], str], prefix: str = "") -> Any:
    """A `schema` object from plain values. where(key): what to name as the place of a setting, as "c.yaml, line 3".

    Raises UserError that names place, key, value and what is allowed.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        found = error.errors(include_url=False)
    unknown = [one for one in found if one["type"] == "extra_forbidden"]
    raise UserError(_sentence(schema, content, (unknown or found)[0], where, prefix))


def _sentence(schema: type[Block], content: Any, error: Any, where: Callable[[str], str], prefix: str) -> str:
    keys, field, inside, known = [], None, schema, schema
    loc = list(error["loc"])
    while inside is not None:  # loc: names of settings; pydantic adds numbers in a list, and kinds of a union
        if not loc and error["type"] == "string_unicode" and isinstance(content, dict):
            loc = [next(name for name in content if name not in inside.model_fields)]  # it has half a character
        if not loc:
            break
        part = loc.pop(0)
        field, known = inside.model_fields.get(part), inside
        keys.append(str(part))
        inside = field and _block_of(field.annotation)
        content = content.get(part, REQUIRED) if isinstance(content, dict) else content
    key = prefix + ".".join(quoted(part) for part in keys)
    place = where(".".join(keys))
    if error["type"] == TOGETHER:
        return f"{place}: {error['msg']}."
    if field is None:
        inside = [name for name, _ in settings_of(schema) if name.rpartition(".")[2] == keys[-1]]
        near = [prefix + name for name in inside] or [
            *difflib.get_close_matches(quoted(keys[-1]), known.model_fields, n=1)
        ]
        hint = f"did you mean `{'` or `'.join(near)}`?" if near else f"known are: {', '.join(known.model_fields)}."
        return f"{place}: there is no setting `{key}`; {hint}"
    if content is REQUIRED:
        return f"{place}: `{key}` is missing; give it: {field.description}."
    if error["type"] == "order":
        return f"{place}: {key} is {quoted_value(content)}; write the smaller number first."
    if error["type"] == "model_type":
        return f"{place}: {key} is {quoted_value(content)}; it must be a mapping of settings."
    return f"{place}: {key} is {quoted_value(content)}; allowed is {allowed(field)}."


def _block_of(kind: Any) -> type[Block] | None:
    return next(
        (one for one in (kind, *typing.get_args(kind)) if isinstance(one, type) and issubclass(one, Block)), None
    )


def settings_of(schema: type[Block], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """("lora", its field), ("lora.rank", its field) and so on, in their order."""
    for name, field in schema.model_fields.items():
        yield prefix + name, field
        if inside := _block_of(field.annotation):
            yield from settings_of(inside, f"{prefix}{name}.")


def allowed(field: FieldInfo) -> str:
    """What a setting may be, in words."""
    return _allowed(field.annotation, field.metadata)


def _allowed(kind: Any, metadata: Any) -> str:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _allowed(parts[0], [*kind.__metadata__, *metadata])
    if origin in (types.UnionType, typing.Union):
        told = [_allowed(part, metadata) for part in parts if part is not type(None)]
        return ", or ".join(told + ["null"] * (type(None) in parts))
    if origin is Literal:
        return "one of " * (len(parts) > 1) + ", ".join(parts)
    if origin is tuple:
        kinds, limits = _number(parts[0], "")
        return f"a list of {len(parts)} {kinds}s{limits}"
    if origin is list:
        kinds, limits = ("word", "") if parts[0] == Name else _number(parts[0], "")
        return f"a list of {kinds}s{limits}, at least one"
    if kind is bool:
        return "true or false"
    if kind is str:
        return "a text that is not empty" if any(_function(one) is _not_empty for one in metadata) else "a text"
    if _block_of(kind):
        return "a mapping of settings"
    kinds, limits = _number(Annotated[kind, *metadata], "a ")
    return kinds + limits


def _number(kind: Any, article: str) -> tuple[str, str]:
    limits: dict[str, float] = {}
    for one in kind.__metadata__:
        for limit in [one, *getattr(one, "metadata", [])]:
            limits |= {name: getattr(limit, name) for name in ("ge", "le") if getattr(limit, name, None) is not None}
    whole = typing.get_args(kind)[0] is int
    low, high = (str(int(limit)) if whole else f"{limit:g}" for limit in (limits["ge"], limits["le"]))
    return article + ("whole number" if whole else "number"), f" from {low} to {high}"


def _function(metadata: Any) -> Any:
    return getattr(metadata, "func", None)
