"""From a config or a run folder to a generator, with the tokenizer that draws what it writes."""

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
"""Any generator's config; `kind` says which."""
_KINDS = {"far": FARConfig, "insightar": InsightARConfig, "dit": DiTConfig}
_SECTION = "generator"
"""Of a generator's run and of no other."""
_COPY = "tokenizer"
"""The folder in a generator's run that the images' tokenizer is copied to."""
_LANGUAGE = "language_model"
"""Likewise for the tokenizer of a language model."""


@config
class TokenizerReference:
    """Whose codes or latents a generator writes."""

    name: str
    """A shipped one, or `tokenizer` for the copy in the run folder."""
    sha256: str
    """Of its weights."""
    resolution: int
    """Of the pictures."""
    grid_size: tuple[int, int]
    """Rows and columns of the patches that the decoder draws."""


def build(
    config: AnyConfig, run: RunFolder | None = None, text_conditioner: TextConditioner | None = None
) -> Generator:
    """A fresh, untrained generator.

    Args:
        config: of the generator.
        run: the folder of a run that holds a language model's tokenizer, where the generator needs one.
        text_conditioner: of prompts, for a generator that hears them through a text encoder.
    """
    if isinstance(config, FARConfig):
        return FAR(config)
    if isinstance(config, DiTConfig):
        return DiT(config, text_conditioner)
    home = None if run is None else run.path / _LANGUAGE
    return InsightAR(config, open_prompt_tokenizer(config.prompt_format, config.max_prompt_tokens, home))


def read_config(values: dict[str, Any], where: str) -> AnyConfig:
    """A generator's config from its JSON form.

    Raises:
        ConfigError: it is of no kind that there is, or has other settings; one line.
    """
    return from_kinds(_KINDS, values, where)


def sampling_of(config: AnyConfig) -> type[SamplingConfig] | type[DiffusionSamplingConfig]:
    """The settings by which a generator of this kind draws."""
    return DiffusionSamplingConfig if isinstance(config, DiTConfig) else SamplingConfig


def config_for_shards(
    config: AnyConfig,
    shards: TokenShards,
    earlier: AnyConfig | None = None,
    language_model: LanguageModel | None = None,
) -> AnyConfig:
    """A generator for these codes or latents: as many, of such codebooks or channels, and for the classes that occur.

    Args:
        config: of the generator.
        shards: the codes or latents.
        earlier: the generator whose weights it gets, if it gets any.
        language_model: likewise.

    Raises:
        ConfigError: latents in place of codes or the other way round, or pictures without the classes or captions that
            it listens to.
        DataError: latents that nobody has measured.
    """
    manifest = shards.manifest
    wants_codes = not isinstance(config, DiTConfig)
    if wants_codes != bool(manifest.codebook_sizes):
        kinds = {True: "codes", False: "latents of a continuous tokenizer"}
        raise ConfigError(f"{shards.folder}: holds {kinds[not wants_codes]}; this generator wants {kinds[wants_codes]}")
    shape = manifest.grid_size if manifest.tokens_on_grid else (manifest.tokens,)
    changes: dict[str, Any] = {"token_shape": shape}
    if isinstance(config, DiTConfig):
        known = read_statistics(shards)
        mean, std = known.mean, known.std
        if isinstance(earlier, DiTConfig) and earlier.channels == manifest.width:
            mean, std = earlier.latent_mean, earlier.latent_std  # what trained weights take for mean 0 and deviation 1
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
    """The language model that a run begins with, if it begins with one.

    Raises:
        ConfigError: there is none at that place.
        MissingWeights: the registry has it, and it is not here.
    """
    if not isinstance(config, InsightARConfig) or not config.language_model:
        return None
    place = config.language_model
    found = pretrained.load(place) if place in pretrained.REGISTRY else load_language_model(place)
    if not isinstance(found, LanguageModel):
        raise ConfigError(f"{place}: is no language model; imtok weights lists them")
    return found


def copy_prompt_tokenizer(language_model: LanguageModel, folder: RunFolder) -> None:
    """Copy a language model's tokenizer into a generator's run folder, in place of what a failed start left there.

    Raises:
        ConfigError: a language model itself is where the copy belongs.
    """
    language_model.tokenizer.save_pretrained(_place_for_prompts(folder))


def copy_prompt_tokenizer_from_run(run: RunFolder, folder: RunFolder) -> None:
    """Copy what a generator's run has of a language model's tokenizer into another run's folder; likewise.

    Raises:
        ConfigError: likewise.
    """
    if (there := run.path / _LANGUAGE).exists():
        shutil.copytree(there, _place_for_prompts(folder))


def _place_for_prompts(folder: RunFolder) -> Path:
    place = folder.path / _LANGUAGE
    if any(found for kind in ("config.json", "*.safetensors", "*.bin") for found in place.glob(kind)):
        raise ConfigError(f"{place}: is in the way of the language model's tokenizer; choose another folder")
    shutil.rmtree(place, ignore_errors=True)
    return place


def reference(manifest: TokenManifest) -> TokenizerReference:
    """The tokenizer that made some shards, as a run folder shall name it."""
    return TokenizerReference(
        name=manifest.tokenizer if manifest.tokenizer in tokenizers.shipped() else _COPY,
        sha256=manifest.sha256,
        resolution=manifest.resolution,
        grid_size=manifest.grid_size,
    )


def copy_tokenizer(manifest: TokenManifest, folder: RunFolder) -> None:
    """Copy the tokenizer into a new run's folder, unless it comes with imtok: the folder then opens anywhere.

    Another project's checkpoint is copied as it is.

    Raises:
        ConfigError: something else is where the copy belongs.
    """
    if manifest.tokenizer in tokenizers.shipped():
        return
    copy = folder.path / _COPY
    if copy.exists():
        if (there := _copy_in(folder)) is None or tokenizers.hash_of(there) != manifest.sha256:
            raise ConfigError(f"{copy}: is in the way of the tokenizer's copy; choose another folder for this run")
        return
    unfinished = copy.with_name(f"{_COPY}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for file in tokenizers.files_of(manifest.tokenizer):
        shutil.copy(file, unfinished / file.name)
    unfinished.rename(copy)


def locate_tokenizer(tokenizer: TokenizerReference, run: RunFolder) -> str:
    """Where a generator's tokenizer lies: its shipped name, or the copy in the run folder.

    Raises:
        ConfigError: it is missing, or another one than the generator was trained for.
    """
    place = _copy_in(run) if tokenizer.name == _COPY else tokenizer.name
    if place is None:
        raise ConfigError(f"{run.path / _COPY}: is missing; the run's tokenizer belongs there")
    if tokenizers.hash_of(place) != tokenizer.sha256:
        raise ConfigError(f"{run.path}: was trained for another tokenizer than the {tokenizer.name} that is here")
    return place


def _copy_in(run: RunFolder) -> str | None:
    """The tokenizer's copy in a run folder."""
    copy = run.path / _COPY
    files = [copy] if RunFolder(copy).exists() else sorted(copy.glob("*"))
    return str(files[0]) if files else None


def weights_hash(run: str) -> str:
    """The sha256 of a generator's weights."""
    return sha256_of(_run_folder(run).model_file)


def shipped() -> list[str]:
    """Names of the generators that come with imtok."""
    return list(shipped_runs(_SECTION))


def load(
    source: str | PathLike[str], device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> ImageGenerator:
    """A trained generator in eval mode, with its tokenizer.

    Args:
        source: a shipped name or a run folder.
        device: where to put both.
        dtype: of the generator's weights; the tokenizer's stay in fp32.

    Raises:
        ConfigError: not found, broken, of an unknown kind, or its tokenizer is not the one that it was trained for.
        DataError: captions that its tokenizer wants to hear are not there.
    """
    source = os.fspath(source)
    run, settings, of = read_run(source)
    text = settings.text if isinstance(settings, DiTConfig) else None
    generator = build(settings, run, None if text is None else TextConditioner(text, device=device))
    generator.load_weights(run.read_model(), source)
    generator.cast(dtype)
    tokenizer = tokenizers.load(locate_tokenizer(of, run), device)
    return ImageGenerator(
        generator=generator.to(device).eval(),
        tokenizer=tokenizer,
        sampling=from_dict(sampling_of(settings), run.read_config()["sampling"], f"{run.config_file}: sampling"),
        resolution=of.resolution,
        grid_size=of.grid_size,
        decoder_conditioner=open_decoder_conditioner(generator, tokenizer, run, device=device),
    )


def read_run(source: str) -> tuple[RunFolder, AnyConfig, TokenizerReference]:
    """A generator's run, its config, and whose codes or latents it writes.

    Args:
        source: a shipped name or a run folder.

    Raises:
        ConfigError: not found, broken, or no generator's.
    """
    run = _run_folder(source)
    config = run.read_config()
    if _SECTION not in config:
        raise ConfigError(f"{source}: is a tokenizer's run; a generator's is wanted")
    settings = read_config(config[_SECTION], f"{run.config_file}: {_SECTION}")
    return run, settings, from_dict(TokenizerReference, config["tokenizer"], f"{run.config_file}: tokenizer")


def _run_folder(source: str) -> RunFolder:
    ours = shipped_runs(_SECTION)
    run = RunFolder(ours.get(source, Path(source)))
    if not run.exists():
        raise ConfigError(
            f"{source}: no such run folder, and no generator that comes with imtok ({', '.join(ours) or 'none yet'})"
        )
    return run
