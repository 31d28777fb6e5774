"""Create the trainer of a generator's run from its settings, token shards and run folder."""

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
    """Check a generator's run and create its trainer.

    The image tokenizer, the language model's tokenizer and the captions that a generator needs are copied into the
    folder of a new run.

    Args:
        config: config as given by the user; codebooks or channels, tokens and classes are taken from the shards.
        data: folder of the token shards.
        folder: run folder, new or to be resumed.
        validation: folder of held-out token shards.
        begin: a run or shipped generator from which a new run takes its initial weights.
        device: device to train on.

    Raises:
        ConfigError: settings, shards, tokenizer and initial weights do not fit together; one line.
        DataError: the shards cannot be read.
        MissingWeights: a text encoder is not available.
    """
    shards = complete_shards(data)
    shown = shards if validation is None else complete_shards(validation)
    origin = _origin(config, folder, begin)
    config = for_tokens(config, shards, origin)
    check_tokenizer_hash(shards, origin, folder)
    check_validation_shards(shards, shown, config)
    assert config.tokenizer is not None
    tokenizer = load(shards.manifest.tokenizer if origin.saved is None else locate_tokenizer(config.tokenizer, folder))
    pictures, text_conditioner = [split.manifest.source for split in (shards, shown)], None
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
    torch.manual_seed(config.training.seed)  # independent of random numbers drawn so far: all ranks start alike
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
    evaluator = GeneratorValidation(config, shown, validation is not None, tokenizer, decoder_conditioner)
    return Trainer(config, task, TokenDataModule(shards), evaluator, folder, device)


@dataclasses.dataclass(frozen=True)
class RunStart:
    """What a generator's run starts from: `saved`, `run`, `language_model`, or none of these.

    Attributes:
        saved: the settings of this run, if it is resumed.
        run: another run that provides the initial weights.
        earlier: the generator's config in `saved` or in `run`.
        language_model: the language model that provides the initial weights.
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
    """Check that the shards were written by the tokenizer that the run was started with.

    For a new run, check that the tokenizer has not changed since it wrote the shards.

    Raises:
        ConfigError: they were written by another tokenizer.
    """
    manifest, saved = shards.manifest, origin.saved
    if saved is None:
        if hash_of(manifest.tokenizer) != manifest.sha256:
            raise ConfigError(f"{shards.folder}: made by another {manifest.tokenizer} than the one that is here by now")
    elif saved.tokenizer is not None and saved.tokenizer.sha256 != manifest.sha256:
        raise ConfigError(f"{shards.folder}: made by another tokenizer than what {folder.path} was started on")


def check_validation_shards(shards: TokenShards, shown: TokenShards, config: GeneratorRunConfig) -> None:
    """Check that the validation shards fit the training shards and the generator.

    Raises:
        ConfigError: the tokenizer or the grid differs, a class is unknown, or there is no readable picture.
    """
    training, validation = shards.manifest, shown.manifest
    if (training.sha256, training.grid_size) != (validation.sha256, validation.grid_size):
        raise ConfigError(f"{shown.folder}: of another tokenizer or resolution than {shards.folder}")
    if classes := getattr(config.generator, "classes", ()):
        for split in (shards, shown):
            if unknown := set(split.labels()) - set(classes):
                raise ConfigError(f"{split.folder}: has the class {min(unknown)!r}, which the generator does not know")
    for split in (shards, shown):
        if not any(len(split[index].values) for index in range(len(split))):
            raise ConfigError(f"{split.folder}: none of its pictures could be read when it was encoded")


def for_tokens(config: GeneratorRunConfig, shards: TokenShards, origin: RunStart = RunStart()) -> GeneratorRunConfig:
    """Return the run's config, completed for the codes or latents in the shards.

    Raises:
        ConfigError: the shards do not fit the generator.
    """
    generator = config_for_shards(config.generator, shards, origin.earlier, origin.language_model)
    return dataclasses.replace(config, generator=generator, tokenizer=reference(shards.manifest))


def complete_shards(data: str) -> TokenShards:
    """Open token shards that contain all their pictures.

    Raises:
        ConfigError: some pictures are not encoded yet.
        DataError: there are no token shards.
    """
    shards = TokenShards(data)
    if not shards.complete:
        raise ConfigError(
            f"{data}: {len(shards)} of {shards.manifest.pictures} pictures are encoded; let imtok encode finish first"
        )
    return shards
