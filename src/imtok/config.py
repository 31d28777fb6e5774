"""Frozen config dataclasses with a strict JSON round trip: an unknown key is an error."""

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
"""Format version in every JSON file that imtok writes; incremented when older versions would misread newer files."""

T = TypeVar("T")


class InputError(Exception):
    """Invalid or missing user input; the one-line message says what is wrong, where, and what to do."""


class ConfigError(InputError):
    """An invalid configuration; the message names the field and what to do.

    Not a ValueError, because pydantic and tyro would wrap that in a multi-line message of their own.
    """


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the host or a device ran out of memory; torch and ONNX Runtime raise their own errors for this."""
    text = str(error).lower()
    from_torch = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or from_torch or "allocate memory" in text or "not enough memory" in text


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def suggest(name: str, names: Iterable[str]) -> str:
    """Return a hint for an unknown name: the closest valid names, or all of them if none is close."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.7)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Decorate a class as a frozen, keyword-only dataclass of finite numbers whose JSON form allows no unknown keys.

    Raises:
        ConfigError: on instantiation, a field is NaN or infinite.
    """
    check_values = getattr(cls, "__post_init__", lambda self: None)

    def check(self: Any) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = [item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, float)]
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
    """Return the plain JSON form (str, int, float, bool, None, list, dict) of a config."""
    return _adapter(type(instance)).dump_python(instance, mode="json")


def from_dict(cls: type[T], values: dict[str, Any], where: str = "config") -> T:
    """Build a config from its JSON form.

    Args:
        cls: a class decorated with `config`.
        values: output of `to_dict`; `format_version` is accepted and checked at the top level.
        where: source of the values, usually a file, named in error messages.

    Raises:
        ConfigError: an unknown key, a wrong type, an invalid value, or a newer format version (one-line message).
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
    """Check that a file has the format version that this imtok reads; a file without `format_version` passes.

    Raises:
        ConfigError: the format version is not `FORMAT_VERSION`; the file is taken to be newer (one-line message).
    """
    version = values.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise ConfigError(f"{where}: format version {version}, this imtok reads {FORMAT_VERSION}; install a newer one")


def from_kinds(kinds: Mapping[str, type[T]], values: dict[str, Any], where: str) -> T:
    """Build a config from its JSON form, as `from_dict` does, with the class that `values["kind"]` selects.

    Args:
        kinds: config class of each kind.
        values: output of `to_dict`.
        where: source of the values, usually a file, named in error messages.

    Raises:
        ConfigError: `kind` is missing or unknown, or the values do not fit its class (one-line message).
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"{where}: is of the kind {kind!r}; there are {', '.join(kinds)}")
    return from_dict(kinds[kind], values, where)


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        ConfigError: the file is missing, is not valid JSON, or does not hold an object.
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
