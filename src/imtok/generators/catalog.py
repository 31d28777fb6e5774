"""Generators from configs and run folders, each with the tokenizer that decodes its codes or latents."""

import dataclasses
import os
import shutil
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import pydantic
import torch

from imtok import pretrained
from imtok.checkpoints import RunFolder, shipped_runs
from imtok.config import ConfigError, config, from_dict, from_kinds
from imtok.data.latent_statistics import read_statistics
from imtok.data.token_shards import TokenManifest, TokenShards
from imtok.generators.base import Generator
from imtok.generators.decoder_conditioning import open_decoder_conditioner
from imtok.generators.diffusion import DiffusionSamplingConfig
from imtok.generators.dit import DiT, DiTConfig
from imtok.generators.far import FAR, FARConfig
from imtok.generators.insightar import InsightAR, InsightARConfig
from imtok.generators.pipeline import ImageGenerator
from imtok.generators.prompts import open_prompt_tokenizer
from imtok.generators.sampling import SamplingConfig
from imtok.pretrained.language_model import LanguageModel, load_language_model
from imtok.pretrained.packages import sha256_of
from imtok.tokenizers import catalog as tokenizers
from imtok.tokenizers.text import TextConditioner

AnyConfig = FARConfig | InsightARConfig | DiTConfig
GeneratorConfig = Annotated[AnyConfig, pydantic.Discriminator("kind")]
"""The config of any generator; `kind` selects its class."""
_KINDS = {"far": FARConfig, "insightar": InsightARConfig, "dit": DiTConfig}
_SECTION = "generator"
"""Section of config.json that only generators' runs have."""
_TOKENIZER_COPY = "tokenizer"
"""Folder in a generator's run that the image tokenizer is copied to; also its name in a `TokenizerReference`."""
_LANGUAGE_MODEL = "language_model"
"""Folder in a generator's run that the tokenizer of a language model is copied to."""


@config
class TokenizerReference:
    """The tokenizer whose codes or latents a generator produces."""

    name: str
    """Name of a shipped tokenizer, or `tokenizer` for the copy in the run folder."""
    sha256: str
    """Hash of the tokenizer's weights."""
    resolution: int
    """Resolution of the pictures in pixels."""
    grid_size: tuple[int, int]
    """Rows and columns of the patches that the tokenizer decodes."""


def build(
    config: AnyConfig, run: RunFolder | None = None, text_conditioner: TextConditioner | None = None
) -> Generator:
    """Build an untrained generator.

    Args:
        config: config of the generator.
        run: run folder with the tokenizer of a language model, for a generator that needs one.
        text_conditioner: encoder of the prompts, for a generator that uses a text encoder.
    """
    if isinstance(config, FARConfig):
        return FAR(config)
    if isinstance(config, DiTConfig):
        return DiT(config, text_conditioner)
    home = None if run is None else run.path / _LANGUAGE_MODEL
    return InsightAR(config, open_prompt_tokenizer(config.prompt_format, config.max_prompt_tokens, home))


def read_config(values: dict[str, Any], where: str) -> AnyConfig:
    """Return a generator's config from its JSON form.

    Raises:
        ConfigError: the kind is unknown, or a setting is unknown or invalid; the message is one line.
    """
    return from_kinds(_KINDS, values, where)


def sampling_of(config: AnyConfig) -> type[SamplingConfig] | type[DiffusionSamplingConfig]:
    """Return the class of a generator's sampling settings."""
    return DiffusionSamplingConfig if isinstance(config, DiTConfig) else SamplingConfig


def config_for_shards(
    config: AnyConfig,
    shards: TokenShards,
    earlier: AnyConfig | None = None,
    language_model: LanguageModel | None = None,
) -> AnyConfig:
    """Return a generator's config fitted to token shards: number of tokens, codebooks or channels, and classes.

    Args:
        config: config of the generator.
        shards: the codes or latents.
        earlier: config of the generator whose weights are loaded, if any.
        language_model: language model whose weights are loaded, if any.

    Raises:
        ConfigError: the shards hold latents where codes are needed or vice versa, or no picture has a class, or a
            caption, whichever the generator is conditioned on.
        DataError: the statistics of the latents have not been measured.
    """
    manifest = shards.manifest
    wants_codes = not isinstance(config, DiTConfig)
    if wants_codes != bool(manifest.codebook_sizes):
        kinds = {True: "codes", False: "latents of a continuous tokenizer"}
        raise ConfigError(f"{shards.folder}: holds {kinds[not wants_codes]}; this generator wants {kinds[wants_codes]}")
    shape = manifest.grid_size if manifest.tokens_on_grid else (manifest.tokens,)
    changes: dict[str, Any] = {"token_shape": shape}
    if isinstance(config, DiTConfig):
        statistics = read_statistics(shards)
        mean, std = statistics.mean, statistics.std
        if isinstance(earlier, DiTConfig) and earlier.channels == manifest.width:
            mean, std = earlier.latent_mean, earlier.latent_std  # the normalization that the loaded weights expect
        changes |= {"channels": manifest.width, "latent_mean": mean, "latent_std": std}
    else:
        changes["codebook_sizes"] = manifest.codebook_sizes
    if isinstance(config, InsightARConfig):
        changes["codebook_dims"] = manifest.branch_dims
        if language_model is not None:
            changes["architecture"] = language_model.architecture
        elif isinstance(earlier, InsightARConfig) and earlier.language_model:
            changes["architecture"] = earlier.architecture
            changes["language_model"] = config.language_model or earlier.language_model
    if isinstance(config, InsightARConfig) or getattr(config, "text", None) is not None:
        if not shards.captioned():
            raise ConfigError(f"{shards.folder}: none of its pictures has a caption to be generated by")
        return dataclasses.replace(config, **changes)
    classes = config.classes or tuple(shards.labels())
    if not classes:
        raise ConfigError(f"{shards.folder}: none of its pictures has a class to be generated by")
    return dataclasses.replace(config, classes=classes, num_classes=len(classes), **changes)


def open_language_model(config: AnyConfig) -> LanguageModel | None:
    """Load the language model that training starts from; None if the config names none.

    Raises:
        ConfigError: what the config names does not exist or is not a language model.
        MissingWeights: it is in the registry, but its weights are not installed.
    """
    if not isinstance(config, InsightARConfig) or not config.language_model:
        return None
    place = config.language_model
    found = pretrained.load(place) if place in pretrained.REGISTRY else load_language_model(place)
    if not isinstance(found, LanguageModel):
        raise ConfigError(f"{place}: is no language model; imtok weights lists them")
    return found


def copy_prompt_tokenizer(language_model: LanguageModel, folder: RunFolder) -> None:
    """Copy a language model's tokenizer into a generator's run folder, replacing the copy of a failed start.

    Raises:
        ConfigError: the destination holds a language model itself.
    """
    language_model.tokenizer.save_pretrained(_clear_prompt_tokenizer_folder(folder))


def copy_prompt_tokenizer_from_run(run: RunFolder, folder: RunFolder) -> None:
    """Copy the language model's tokenizer of one run, if it has one, into another; see `copy_prompt_tokenizer`.

    Raises:
        ConfigError: the destination holds a language model itself.
    """
    if (source := run.path / _LANGUAGE_MODEL).exists():
        shutil.copytree(source, _clear_prompt_tokenizer_folder(folder))


def _clear_prompt_tokenizer_folder(folder: RunFolder) -> Path:
    place = folder.path / _LANGUAGE_MODEL
    if any(found for kind in ("config.json", "*.safetensors", "*.bin") for found in place.glob(kind)):
        raise ConfigError(f"{place}: is in the way of the language model's tokenizer; choose another folder")
    shutil.rmtree(place, ignore_errors=True)
    return place


def reference(manifest: TokenManifest) -> TokenizerReference:
    """Return the reference that a run folder stores for the tokenizer of some token shards."""
    return TokenizerReference(
        name=manifest.tokenizer if manifest.tokenizer in tokenizers.shipped() else _TOKENIZER_COPY,
        sha256=manifest.sha256,
        resolution=manifest.resolution,
        grid_size=manifest.grid_size,
    )


def copy_tokenizer(manifest: TokenManifest, folder: RunFolder) -> None:
    """Copy the tokenizer, unless it comes with imtok, into a new run's folder, which makes the folder self-contained.

    Another project's checkpoint is copied unchanged.

    Raises:
        ConfigError: the destination holds something else.
    """
    if manifest.tokenizer in tokenizers.shipped():
        return
    copy = folder.path / _TOKENIZER_COPY
    if copy.exists():
        if (existing := _find_tokenizer_copy(folder)) is None or tokenizers.hash_of(existing) != manifest.sha256:
            raise ConfigError(f"{copy}: is in the way of the tokenizer's copy; choose another folder for this run")
        return
    unfinished = copy.with_name(f"{_TOKENIZER_COPY}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for file in tokenizers.files_of(manifest.tokenizer):
        shutil.copy(file, unfinished / file.name)
    unfinished.rename(copy)


def locate_tokenizer(tokenizer: TokenizerReference, run: RunFolder) -> str:
    """Return the shipped name of a generator's tokenizer, or the path of its copy in the run folder.

    Raises:
        ConfigError: it is missing, or it is not the tokenizer that the generator was trained for.
    """
    place = _find_tokenizer_copy(run) if tokenizer.name == _TOKENIZER_COPY else tokenizer.name
    if place is None:
        raise ConfigError(f"{run.path / _TOKENIZER_COPY}: is missing; the run's tokenizer belongs there")
    if tokenizers.hash_of(place) != tokenizer.sha256:
        raise ConfigError(f"{run.path}: was trained for another tokenizer than the {tokenizer.name} that is here")
    return place


def _find_tokenizer_copy(run: RunFolder) -> str | None:
    """Return the path of the tokenizer's copy in a run folder, or None."""
    copy = run.path / _TOKENIZER_COPY
    files = [copy] if RunFolder(copy).exists() else sorted(copy.glob("*"))
    return str(files[0]) if files else None


def weights_hash(run: str) -> str:
    """Return the sha256 of a generator's weights."""
    return sha256_of(_run_folder(run).model_file)


def shipped() -> list[str]:
    """Return the names of the generators that come with imtok."""
    return list(shipped_runs(_SECTION))


def load(
    source: str | PathLike[str], device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> ImageGenerator:
    """Load a trained generator in eval mode, with its tokenizer.

    Args:
        source: a shipped name or a run folder.
        device: device of generator and tokenizer.
        dtype: dtype of the generator's weights; the tokenizer's stay in fp32.

    Raises:
        ConfigError: the generator is not found, broken or of an unknown kind, or its tokenizer is not the one that it
            was trained for.
        DataError: the run has no unseen captions, and the tokenizer needs them.
    """
    source = os.fspath(source)
    run, settings, tokenizer_reference = read_run(source)
    text = settings.text if isinstance(settings, DiTConfig) else None
    generator = build(settings, run, None if text is None else TextConditioner(text, device=device))
    generator.load_weights(run.read_model(), source)
    generator.cast(dtype)
    tokenizer = tokenizers.load(locate_tokenizer(tokenizer_reference, run), device)
    return ImageGenerator(
        generator=generator.to(device).eval(),
        tokenizer=tokenizer,
        sampling=from_dict(sampling_of(settings), run.read_config()["sampling"], f"{run.config_file}: sampling"),
        resolution=tokenizer_reference.resolution,
        grid_size=tokenizer_reference.grid_size,
        decoder_conditioner=open_decoder_conditioner(generator, tokenizer, run, device=device),
    )


def read_run(source: str) -> tuple[RunFolder, AnyConfig, TokenizerReference]:
    """Return a generator's run folder, its config, and the reference to its tokenizer.

    Args:
        source: a shipped name or a run folder.

    Raises:
        ConfigError: the run is not found, broken, or not a generator's.
    """
    run = _run_folder(source)
    config = run.read_config()
    if _SECTION not in config:
        raise ConfigError(f"{source}: is a tokenizer's run; a generator's is wanted")
    settings = read_config(config[_SECTION], f"{run.config_file}: {_SECTION}")
    return run, settings, from_dict(TokenizerReference, config["tokenizer"], f"{run.config_file}: tokenizer")


def _run_folder(source: str) -> RunFolder:
    builtin = shipped_runs(_SECTION)
    run = RunFolder(builtin.get(source, Path(source)))
    if not run.exists():
        raise ConfigError(
            f"{source}: no such run folder, and no generator that comes with imtok ({', '.join(builtin) or 'none yet'})"
        )
    return run
