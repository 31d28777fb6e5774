"""Build tokenizers from a config, and load them by name, folder or file."""

import os
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import pydantic
import torch

from imtok.checkpoints import RunFolder, load_tensors, shipped_runs
from imtok.config import ConfigError, from_kinds
from imtok.pretrained.packages import sha256_of
from imtok.tokenizers import foreign
from imtok.tokenizers.base import Tokenizer
from imtok.tokenizers.diffusers_models import WEIGHTS, find_model, load_model
from imtok.tokenizers.textok import TexTok, TexTokConfig
from imtok.tokenizers.vqgan import VQGAN, VQGANConfig

TokenizerConfig = Annotated[VQGANConfig | TexTokConfig, pydantic.Discriminator("kind")]
"""Config of any tokenizer, discriminated by `kind`."""
_KINDS = {"vqgan": VQGANConfig, "textok": TexTokConfig}
_SECTION = "discriminator"
"""Section of a run's config that only tokenizers' runs have."""


def build(config: VQGANConfig | TexTokConfig) -> Tokenizer:
    """Build an untrained tokenizer."""
    return VQGAN(config) if isinstance(config, VQGANConfig) else TexTok(config)


def read_config(values: dict[str, Any], where: str) -> VQGANConfig | TexTokConfig:
    """Parse a tokenizer's config from its JSON form.

    Raises:
        ConfigError: the kind is unknown or the settings are invalid; one line.
    """
    return from_kinds(_KINDS, values, where)


def shipped() -> list[str]:
    """Return the names of the tokenizers that come with imtok."""
    return list(shipped_runs(_SECTION))


def locate(source: str) -> Path:
    """Return the path of a run folder, shipped tokenizer, checkpoint file or diffusers model.

    For a diffusers pipeline this is the subfolder of its autoencoder.

    Raises:
        ConfigError: nothing has this name; the shipped names are listed.
    """
    runs = shipped_runs(_SECTION)
    if source in runs:
        return runs[source]
    path = Path(source)
    if not path.exists():
        raise ConfigError(
            f"{source}: no such run folder or checkpoint file, and no tokenizer that comes with imtok "
            f"({', '.join(runs) or 'none yet'})"
        )
    return find_model(path) or path


def files_of(source: str) -> list[Path]:
    """Return the files of a tokenizer; the last one is its weights file, which may not exist yet.

    Raises:
        ConfigError: nothing has this name.
    """
    path = locate(source)
    if not path.is_dir():
        return [path]
    run = RunFolder(path)
    return [run.config_file, path / WEIGHTS if find_model(path) else run.model_file]


def hash_of(source: str) -> str:
    """Return the sha256 of a tokenizer's weights file, by which a generator recognizes its tokenizer.

    Raises:
        ConfigError: the tokenizer does not exist or has no weights.
    """
    file = files_of(source)[-1]
    if not file.is_file():
        raise ConfigError(f"{source}: has no weights yet")
    return sha256_of(file)


def trained_resolution(source: str) -> int | None:
    """Return the side in pixels of the crops that a tokenizer was trained on; None if it is not an imtok run.

    Raises:
        ConfigError: nothing has this name.
    """
    path = locate(source)
    if not path.is_dir() or find_model(path):
        return None
    return RunFolder(path).read_config().get("data", {}).get("crop", {}).get("resolution")


def load(source: str | PathLike[str], device: str | torch.device = "cpu") -> Tokenizer:
    """Load a trained tokenizer in eval mode.

    Args:
        source: a shipped name (`insighttok-nano`), a run folder, another project's checkpoint file, or the folder of
            a diffusers model or pipeline.
        device: device to load the tokenizer to.

    Raises:
        ConfigError: the source is not found, broken, or of an unknown kind; one line.
    """
    source = os.fspath(source)
    path = locate(source)
    if find_model(path):
        return load_model(path).to(device).eval()
    if path.is_dir():
        run = RunFolder(path)
        values = run.read_config()
        if _SECTION not in values:
            raise ConfigError(f"{source}: holds no tokenizer, but another kind of model")
        config = read_config(values.get("tokenizer", {}), f"{run.config_file}: tokenizer")
        weights = run.read_model()
    else:
        config, weights = foreign.convert(load_tensors(path), str(path))
    tokenizer = build(config)
    tokenizer.load_weights(weights, str(path))
    return tokenizer.to(device).eval()
