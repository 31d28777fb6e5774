"""Frozen dataclasses that go to JSON and back, strictly: a key that nobody reads is an error, not a shrug."""

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic

FORMAT_VERSION = 1
"""Written into every JSON file that imtok makes; raised when an old reader would misread a new file."""

T = TypeVar("T")


class InputError(Exception):
    """Something that the user gave or that is missing; one line: what, where, what to do."""


class ConfigError(InputError):
    """A configuration that cannot be meant; the message names the field and what to do.

    It is no ValueError, which pydantic and tyro would wrap in lines of their own.
    """


def is_out_of_memory(error: Exception) -> bool:
    """Whether the computer or a device has run out of it; torch and ONNX Runtime have errors of their own for that."""
    said = str(error).lower()
    of_torch = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or of_torch or "allocate memory" in said or "not enough memory" in said


def first_line(error: Exception) -> str:
    """What an error of some library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def suggest(name: str, names: Iterable[str]) -> str:
    """What may have been meant instead of a name that nothing has: the nearest ones, or all of them."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.7)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Decorator: a frozen, keyword-only dataclass of finite numbers whose JSON form admits no unknown keys.

    Raises:
        ConfigError: on making an instance, if a field is NaN or infinite.
    """
    check_values = getattr(cls, "__post_init__", lambda self: None)

    def check(self: Any) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = [one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, float)]
            if not all(map(math.isfinite, numbers)):
                where = getattr(self, "kind", cls.__name__.removesuffix("Config").lower())
                raise ConfigError(f"{where}: {field.name} = {value} must be finite")
        check_values(self)

    cls.__post_init__ = check  # pyright: ignore[reportAttributeAccessIssue]
    cls.__pydantic_config__ = pydantic.ConfigDict(extra="forbid")  # pyright: ignore[reportAttributeAccessIssue]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@cache
def _adapter(cls: type) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(cls)


def to_dict(instance: Any) -> dict[str, Any]:
    """The plain JSON form (str, int, float, bool, None, list, dict) of a config."""
    return _adapter(type(instance)).dump_python(instance, mode="json")


def from_dict(cls: type[T], values: dict[str, Any], where: str = "config") -> T:
    """Build a config from its JSON form.

    Args:
        cls: a class made by `config`.
        values: what `to_dict` gave; `format_version` is accepted and checked at the top level.
        where: named in the error, usually a file.

    Raises:
        ConfigError: an unknown key, a wrong type, a value that cannot be meant, or a file of a newer format; one line.
    """
    check_format(values, where)
    values = {name: value for name, value in values.items() if name != "format_version"}
    try:
        return _adapter(cls).validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or cls.__name__
        reason = "no such setting" if first["type"] == "unexpected_keyword_argument" else first["msg"]
        raise ConfigError(f"{where}: {key}: {reason}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from None


def check_format(values: Mapping[str, Any], where: str) -> None:
    """Whether a file is of the format that this version reads, as far as it says.

    Raises:
        ConfigError: of a newer one; one line.
    """
    version = values.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise ConfigError(f"{where}: format version {version}, this imtok reads {FORMAT_VERSION}; install a newer one")


def from_kinds(kinds: Mapping[str, type[T]], values: dict[str, Any], where: str) -> T:
    """Likewise, of the class that `kind` in the values names.

    Raises:
        ConfigError: it is of no kind that there is, or has other settings; one line.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"{where}: is of the kind {kind!r}; there are {', '.join(kinds)}")
    return from_dict(kinds[kind], values, where)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConfigError: no such file, broken JSON, or not an object.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}, expected a JSON object")
    return values
