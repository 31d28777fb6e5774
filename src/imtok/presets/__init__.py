"""Presets: named configs of runs, each a function whose docstring gives the paper's numbers and our measurements.

A preset of a paper has the paper's values; the docstrings of the configs mark what the paper does not specify. `-nano`
runs train on a laptop's CPU; `-debug` runs have twelve steps and take seconds.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from imtok.config import ConfigError, suggest, to_dict
from imtok.presets import dit, far, fqgan, insightar, insighttok, kl, textok
from imtok.tokenizers.base import Tokenizer
from imtok.tokenizers.catalog import build, read_config
from imtok.training.run import AnyRunConfig, GeneratorRunConfig, RunConfig

_FAMILIES = (insighttok, fqgan, textok, kl, far, insightar, dit)


def _members(family: ModuleType) -> dict[str, Callable[[], AnyRunConfig]]:
    return {preset.__name__.replace("_", "-"): preset for preset in family.PRESETS}


_PRESETS = {name: preset for family in _FAMILIES for name, preset in _members(family).items()}


def names() -> dict[str, str]:
    """Return the name of every preset with the first line of its docstring."""
    return {name: (preset.__doc__ or "").splitlines()[0] for name, preset in _PRESETS.items()}


def overview() -> str:
    """Return a list of all presets, grouped by family, with a line for each."""
    summaries = names()
    width = max(map(len, summaries)) + 2
    blocks = []
    for family in _FAMILIES:
        lines = [f"  {name:{width}}{summaries[name]}" for name in _members(family)]
        blocks.append("\n".join([(family.__doc__ or "").splitlines()[0], *lines]))
    return "\n\n".join(blocks)


def get_run(name: str) -> AnyRunConfig:
    """Return the config of a tokenizer's or generator's preset.

    Raises:
        ConfigError: there is no such preset; the message lists the nearest names, or all.
    """
    if name not in _PRESETS:
        raise ConfigError(f"no preset is called {name!r}; {suggest(name, _PRESETS)}")
    return _PRESETS[name]()


def get(name: str) -> RunConfig:
    """Return the config of a tokenizer's preset.

    Raises:
        ConfigError: there is no such preset, or it is a generator's.
    """
    found = get_run(name)
    if not isinstance(found, RunConfig):
        raise ConfigError(f"{name} is a generator's preset; a tokenizer's is wanted")
    return found


def get_generator(name: str) -> GeneratorRunConfig:
    """Return the config of a generator's preset.

    Raises:
        ConfigError: there is no such preset, or it is a tokenizer's.
    """
    found = get_run(name)
    if not isinstance(found, GeneratorRunConfig):
        raise ConfigError(f"{name} is a tokenizer's preset; a generator's is wanted")
    return found


def create_tokenizer(name: str, **changes: Any) -> Tokenizer:
    """Create the untrained tokenizer of a preset.

    Args:
        name: name of the preset.
        changes: changed fields of the config of the tokenizer or of its quantizer, such as `codebook_size=512`.

    Raises:
        ConfigError: there is no such preset or field.
    """
    values = to_dict(get(name).tokenizer)
    for field, value in changes.items():
        section = values["quantizer"] if field in values["quantizer"] else values
        section[field] = value
    return build(read_config(values, name))
