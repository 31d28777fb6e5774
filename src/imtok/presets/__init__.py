"""Every named run: a function that returns its config. The docstring gives the paper's numbers and what was measured.

Each paper preset carries the paper's values; what the paper leaves open is marked in the config's own docstrings.
`-nano` runs train on a laptop's CPU, `-debug` runs take twelve steps in seconds.
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
    """Every preset's name and the first line of its docstring."""
    return {name: (preset.__doc__ or "").splitlines()[0] for name, preset in _PRESETS.items()}


def overview() -> str:
    """All of them, family by family, a line each."""
    summaries = names()
    width = max(map(len, summaries)) + 2
    blocks = []
    for family in _FAMILIES:
        lines = [f"  {name:{width}}{summaries[name]}" for name in _members(family)]
        blocks.append("\n".join([(family.__doc__ or "").splitlines()[0], *lines]))
    return "\n\n".join(blocks)


def get_run(name: str) -> AnyRunConfig:
    """The preset of this name, of a tokenizer or of a generator.

    Raises:
        ConfigError: there is none; the nearest names are listed, or all.
    """
    if name not in _PRESETS:
        raise ConfigError(f"no preset is called {name!r}; {suggest(name, _PRESETS)}")
    return _PRESETS[name]()


def get(name: str) -> RunConfig:
    """The tokenizer's preset of this name.

    Raises:
        ConfigError: there is none, or it is a generator's.
    """
    found = get_run(name)
    if not isinstance(found, RunConfig):
        raise ConfigError(f"{name} is a generator's preset; a tokenizer's is wanted")
    return found


def get_generator(name: str) -> GeneratorRunConfig:
    """The generator's preset of this name.

    Raises:
        ConfigError: there is none, or it is a tokenizer's.
    """
    found = get_run(name)
    if not isinstance(found, GeneratorRunConfig):
        raise ConfigError(f"{name} is a tokenizer's preset; a generator's is wanted")
    return found


def create_tokenizer(name: str, **changes: Any) -> Tokenizer:
    """A fresh, untrained tokenizer of a preset.

    Args:
        name: the preset's.
        changes: fields of the tokenizer's config, or of its quantizer's, such as `codebook_size=512`.

    Raises:
        ConfigError: no such preset or setting.
    """
    values = to_dict(get(name).tokenizer)
    for setting, value in changes.items():
        home = values["quantizer"] if setting in values["quantizer"] else values
        home[setting] = value
    return build(read_config(values, name))
