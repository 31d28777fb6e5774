"""From a generator's settings, token shards and a folder to its trainer."""

import dataclasses
import itertools

import torch

from imtok.checkpoints import RunFolder
from imtok.config import ConfigError
from imtok.data.token_shards import TokenShards
from imtok.generators.catalog import (
    AnyConfig,
    config_for_shards,
    copy_prompt_tokenizer,
    copy_prompt_tokenizer_from_run,
    copy_tokenizer,
    locate_tokenizer,
    open_language_model,
    read_run,
    reference,
)
from imtok.generators.decoder_conditioning import (
    copy_unseen_captions_to_run,
    open_decoder_conditioner,
    wants_unseen_captions,
)
from imtok.generators.dit import DiTConfig
from imtok.generators.insightar import InsightAR
from imtok.layers.collective import barrier, rank
from imtok.pretrained.language_model import LanguageModel
from imtok.tokenizers.catalog import hash_of, load
from imtok.tokenizers.text import TextConditioner
from imtok.training.data_modules import TokenDataModule
from imtok.training.generator_task import GeneratorTask, GeneratorValidation
from imtok.training.run import GeneratorRunConfig
from imtok.training.same_settings import check_same_run, saved_settings
from imtok.training.trainer import Trainer
from imtok.training.warm_start import start_generator_from


def generator_trainer(
    config: GeneratorRunConfig,
    data: str,
    folder: RunFolder,
    validation: str | None,
    begin: str | None,
    device: torch.device,
) -> Trainer:
    """Everything that a generator's run needs, checked; a new run's folder gets its tokenizer and what else it carries.

    Args:
        config: as the user gave it; codebooks or channels, tokens and classes come from the shards.
        data: token shards.
        folder: of the run, new or to go on with.
        validation: held-out token shards.
        begin: a run or shipped generator whose weights it begins with, if it is new.
        device: to train on.

    Raises:
        ConfigError: something does not fit; one line.
        DataError: the shards cannot be read.
        MissingWeights: a text encoder is not here.
    """
    shards = complete_shards(data)
    shown = shards if validation is None else complete_shards(validation)
    origin = _origin(config, folder, begin)
    config = for_tokens(config, shards, origin)
    check_tokenizer_hash(shards, origin, folder)
    check_validation_shards(shards, shown, config)
    assert config.tokenizer is not None
    tokenizer = load(shards.manifest.tokenizer if origin.saved is None else locate_tokenizer(config.tokenizer, folder))
    pictures, text_conditioner = [one.manifest.source for one in (shards, shown)], None
    if isinstance(config.generator, DiTConfig) and config.generator.text is not None:
        text = config.generator.text.with_weights_of(getattr(origin.earlier, "text", None))
        text_conditioner = TextConditioner(text.with_weights_of(tokenizer.text_config), pictures, device)
        text_conditioner.prepare(itertools.chain(shards.captions(), shown.captions()))
        config = dataclasses.replace(
            config, generator=dataclasses.replace(config.generator, text=text_conditioner.config)
        )
    if origin.saved is not None:
        check_same_run(config, origin.saved, folder)
    elif rank() == 0:
        copy_tokenizer(shards.manifest, folder)
        if origin.language_model is not None:
            copy_prompt_tokenizer(origin.language_model, folder)
        elif origin.run is not None:
            copy_prompt_tokenizer_from_run(origin.run, folder)
    barrier()
    torch.manual_seed(config.training.seed)  # whatever has been drawn so far, all ranks begin alike
    task = GeneratorTask(config, folder, text_conditioner)
    task.generator.check_sampling(config.sampling)
    if origin.language_model is not None:
        assert isinstance(task.generator, InsightAR)
        task.generator.language_model.load_state_dict(origin.language_model.model.state_dict())
    if begin:
        start_generator_from(task, config, begin)
    task.generator.init_from_tokenizer(tokenizer)
    if origin.saved is None and rank() == 0 and wants_unseen_captions(task.generator, tokenizer):
        copy_unseen_captions_to_run(task.generator, shards.manifest.source, folder)
    barrier()
    decoder_conditioner = open_decoder_conditioner(task.generator, tokenizer, folder, pictures, device)
    if decoder_conditioner is not None:
        decoder_conditioner.prepare(shown.captions())
    looks = GeneratorValidation(config, shown, validation is not None, tokenizer, decoder_conditioner)
    return Trainer(config, task, TokenDataModule(shards), looks, folder, device)


@dataclasses.dataclass(frozen=True)
class RunStart:
    """What a generator's run goes on with, or begins with: nothing, or one of these.

    Attributes:
        saved: its own settings, of a run that goes on.
        run: another one, whose weights it begins with.
        earlier: the generator of either.
        language_model: that it begins with.
    """

    saved: GeneratorRunConfig | None = None
    run: RunFolder | None = None
    earlier: AnyConfig | None = None
    language_model: LanguageModel | None = None


def _origin(config: GeneratorRunConfig, folder: RunFolder, begin: str | None) -> RunStart:
    if (saved := saved_settings(config, folder)) is not None:
        return RunStart(saved=saved, earlier=saved.generator)
    if begin:
        run, earlier, _ = read_run(begin)
        return RunStart(run=run, earlier=earlier)
    return RunStart(language_model=open_language_model(config.generator))


def check_tokenizer_hash(shards: TokenShards, origin: RunStart, folder: RunFolder) -> None:
    """Whether the tokenizer that made some shards is the one that a run was started on, or still the one that is here.

    Raises:
        ConfigError: it is another one.
    """
    made_by, saved = shards.manifest, origin.saved
    if saved is None:
        if hash_of(made_by.tokenizer) != made_by.sha256:
            raise ConfigError(f"{shards.folder}: made by another {made_by.tokenizer} than the one that is here by now")
    elif saved.tokenizer is not None and saved.tokenizer.sha256 != made_by.sha256:
        raise ConfigError(f"{shards.folder}: made by another tokenizer than what {folder.path} was started on")


def check_validation_shards(shards: TokenShards, shown: TokenShards, config: GeneratorRunConfig) -> None:
    """Whether a run can look at held-out pictures as at its own.

    Raises:
        ConfigError: codes of another tokenizer or size, unknown classes, or not one readable picture.
    """
    ours, theirs = shards.manifest, shown.manifest
    if (ours.sha256, ours.grid_size) != (theirs.sha256, theirs.grid_size):
        raise ConfigError(f"{shown.folder}: of another tokenizer or resolution than {shards.folder}")
    if classes := getattr(config.generator, "classes", ()):
        for one in (shards, shown):
            if unknown := set(one.labels()) - set(classes):
                raise ConfigError(f"{one.folder}: has the class {min(unknown)!r}, which the generator does not know")
    for one in (shards, shown):
        if not any(len(one[index].values) for index in range(len(one))):
            raise ConfigError(f"{one.folder}: none of its pictures could be read when it was encoded")


def for_tokens(config: GeneratorRunConfig, shards: TokenShards, origin: RunStart = RunStart()) -> GeneratorRunConfig:
    """The run for the codes or latents in some shards.

    Raises:
        ConfigError: they are of no use for it.
    """
    generator = config_for_shards(config.generator, shards, origin.earlier, origin.language_model)
    return dataclasses.replace(config, generator=generator, tokenizer=reference(shards.manifest))


def complete_shards(data: str) -> TokenShards:
    """Token shards with all their pictures.

    Raises:
        ConfigError: some are still missing.
        DataError: there are no token shards.
    """
    shards = TokenShards(data)
    if not shards.complete:
        raise ConfigError(
            f"{data}: {len(shards)} of {shards.manifest.pictures} pictures are encoded; let imtok encode finish first"
        )
    return shards
