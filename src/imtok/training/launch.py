"""From a RunConfig, pictures and a folder to a started or resumed training."""

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch

from imtok.checkpoints import RunFolder
from imtok.config import ConfigError, from_dict, to_dict
from imtok.data.filling import check_finished
from imtok.data.readers import open_source
from imtok.data.token_shards import TokenShards
from imtok.evaluation.teachers import teachers_of_weights
from imtok.generators.catalog import (
    AnyConfig,
    carry_prompts,
    carry_tokenizer,
    fitted,
    open_language_model,
    place_of,
    read_run,
    reference,
    take_over_prompts,
)
from imtok.generators.dit import DiTConfig
from imtok.generators.insightar import InsightAR
from imtok.generators.narrator import carry_unseen_captions, open_narrator, wants_unseen_captions
from imtok.layers.collective import has_process_group, mean_over_ranks, process_group, rank, wait_for_all
from imtok.pretrained.language_model import LanguageModel
from imtok.tokenizers.catalog import hash_of, load, locate
from imtok.tokenizers.text import Reader
from imtok.tokenizers.textok import TexTokConfig
from imtok.training.feeds import PictureFeed, TokenFeed
from imtok.training.generator_task import GeneratorTask, GeneratorValidation
from imtok.training.run import AnyRunConfig, GeneratorRunConfig, RunConfig
from imtok.training.tasks import TokenizerTask, check_pictures, check_scales
from imtok.training.trainer import Trainer
from imtok.training.validation import Validation

AnyRun = TypeVar("AnyRun", RunConfig, GeneratorRunConfig)

_MAY_CHANGE = (
    "training.micro_batch_size",
    "training.channels_last",
    "training.gradient_checkpointing",
    "training.shard_weights",
    "training.compile",
    "training.threads",
    "training.log_every",
    "training.save_every",
    "training.preview_every",
    "training.evaluate_every",
    "training.evaluation_pictures",
    "training.logger",
    "training.watchdog.",
    "data.num_workers",
    "sampling.",
)
"""Settings that a resumed run may change: they alter how the steps are computed and watched, not what they compute."""

_OF_ONE_PASS = ("entropy", "representation")
"""Losses that compare the pictures of one pass, so that the size of a micro-batch is part of what they are."""

_TRAINING_ONLY = (
    "tokenizer.quantizer.decay",
    "tokenizer.quantizer.restart_threshold",
    "tokenizer.quantizer.entropy_temperature",
    "generator.dropout",
    "generator.label_dropout",
    "generator.prompt_dropout",
    "generator.language_model",
)
"""Settings that mean nothing to trained weights."""


def train(
    config: AnyRunConfig,
    data: str,
    out: str | Path,
    validation: str | None = None,
    resume: bool = False,
    init_from: str | None = None,
) -> Path:
    """Train a tokenizer or a generator through all its phases.

    Ctrl-C or SIGTERM ends after the current step, saved, with KeyboardInterrupt. Under torchrun, all processes call
    this alike; it kills them 30 seconds after a signal, saved or not.

    Args:
        config: the run; a preset or a changed one.
        data: Parquet shards (see `imtok annotate` and `imtok synthesize`) or whatever else `open_source` reads; for a
            generator token shards (see `imtok encode`).
        out: run folder.
        validation: held-out pictures for previews and the evaluation; without them previews show training pictures.
        resume: go on with the run in `out`, which must have the same settings and as many pictures; where there is none
            yet, begin it.
        init_from: start from this run, shipped tokenizer or other project's checkpoint instead of from scratch.

    Returns:
        The run folder.

    Raises:
        ConfigError: something does not fit, `out` holds something else, or another process trains there; one line.
        DataError: the data cannot be read, or `imtok annotate` has not finished them.
        MissingWeights: a network that a later phase needs is not here.
        TrainingStopped: the run has gone wrong.
    """
    folder = RunFolder(out)
    with process_group() as device:
        started = _has_begun(folder, device)
        if not started:
            folder.check_vacant()
        wait_for_all()  # the first rank creates it
        if started and not resume:
            raise ConfigError(f"{out}: already holds a run; give --resume to go on with it, or another folder")
        if config.training.shard_weights:
            check_can_shard(config)
        begin = None if started else init_from
        if isinstance(config, GeneratorRunConfig):
            trainer = _generator_trainer(config, data, folder, validation, begin, device)
        else:
            trainer = _tokenizer_trainer(config, data, folder, validation, begin, device)
        with folder.held() if rank() == 0 else nullcontext():
            trainer.run(resume=started)
    return folder.path


def _has_begun(folder: RunFolder, device: torch.device) -> bool:
    """Whether there is a run to go on with, as all ranks see it.

    Raises:
        ConfigError: some see one, others do not.
    """
    share = torch.tensor(float(folder.exists()), device=device)
    mean_over_ranks([share])
    if 0 < share.item() < 1:
        raise ConfigError(
            f"{folder.path}: only some of the processes see this run; copy it to every machine, or use a shared folder"
        )
    return bool(share.item())


def _tokenizer_trainer(
    config: RunConfig, data: str, folder: RunFolder, validation: str | None, begin: str | None, device: torch.device
) -> Trainer:
    reader = None
    if isinstance(config.tokenizer, TexTokConfig) and config.tokenizer.text is not None:
        reader = Reader(config.tokenizer.text, [data] if validation is None else [data, validation], device)
        reader.require_text()
        reader.prepare()
        tokenizer = dataclasses.replace(config.tokenizer, text=reader.config)
        config = dataclasses.replace(config, tokenizer=tokenizer)
    if begin:
        config = dataclasses.replace(config, earlier_teachers=tuple(sorted(teachers_of_weights(locate(begin)))))
    if (saved := _saved(config, folder)) is not None:
        config = dataclasses.replace(config, earlier_teachers=saved.earlier_teachers)
        check_same_run(config, saved, folder)
    torch.manual_seed(config.training.seed)  # whatever has been drawn so far, such as an encoder's weights
    task = TokenizerTask(config, reader)
    if begin:
        start_from(task, begin)
    for shards in (data, validation or data):
        check_finished(shards)
    source = open_source(data)
    check_pictures(config, source)
    check_scales(config)
    shown = source if validation is None else open_source(validation)
    looks = Validation(config, shown, held_out=validation is not None, reader=reader)
    return Trainer(config, task, PictureFeed(source, config.data), looks, folder, device)


def _generator_trainer(
    config: GeneratorRunConfig,
    data: str,
    folder: RunFolder,
    validation: str | None,
    begin: str | None,
    device: torch.device,
) -> Trainer:
    shards = complete_shards(data)
    shown = shards if validation is None else complete_shards(validation)
    origin = _origin(config, folder, begin)
    config = for_tokens(config, shards, origin)
    check_maker(shards, origin, folder)
    check_alike(shards, shown, config)
    pictures, reader = [one.manifest.source for one in (shards, shown)], None
    if isinstance(config.generator, DiTConfig) and config.generator.text is not None:
        reader = Reader(config.generator.text, pictures, device)
        reader.prepare(itertools.chain(shards.captions(), shown.captions()))
        config = dataclasses.replace(config, generator=dataclasses.replace(config.generator, text=reader.config))
    if origin.saved is not None:
        check_same_run(config, origin.saved, folder)
    elif rank() == 0:
        carry_tokenizer(shards.manifest, folder)
        if origin.language_model is not None:
            carry_prompts(origin.language_model, folder)
        elif origin.run is not None:
            take_over_prompts(origin.run, folder)
    wait_for_all()
    assert config.tokenizer is not None
    tokenizer = load(place_of(config.tokenizer, folder))
    torch.manual_seed(config.training.seed)  # whatever has been drawn so far, all ranks begin alike
    task = GeneratorTask(config, folder, reader)
    task.generator.check_sampling(config.sampling)
    if origin.language_model is not None:
        assert isinstance(task.generator, InsightAR)
        task.generator.language_model.load_state_dict(origin.language_model.model.state_dict())
    if begin:
        start_generator_from(task, config, begin)
    task.generator.adopt(tokenizer)
    if origin.saved is None and rank() == 0 and wants_unseen_captions(task.generator, tokenizer):
        carry_unseen_captions(task.generator, shards.manifest.source, folder)
    wait_for_all()
    narrator = open_narrator(task.generator, tokenizer, folder, pictures, device)
    if narrator is not None:
        narrator.prepare(shown.captions())
    looks = GeneratorValidation(config, shown, validation is not None, tokenizer, narrator)
    return Trainer(config, task, TokenFeed(shards), looks, folder, device)


@dataclasses.dataclass(frozen=True)
class Origin:
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


def _origin(config: GeneratorRunConfig, folder: RunFolder, begin: str | None) -> Origin:
    if (saved := _saved(config, folder)) is not None:
        return Origin(saved=saved, earlier=saved.generator)
    if begin:
        run, earlier, _ = read_run(begin)
        return Origin(run=run, earlier=earlier)
    return Origin(language_model=open_language_model(config.generator))


def check_maker(shards: TokenShards, origin: Origin, folder: RunFolder) -> None:
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


def check_can_shard(config: AnyRunConfig) -> None:
    """Whether a run's weights can be cut up among the processes; asked before any are made.

    Raises:
        ConfigError: they cannot.
    """
    if not isinstance(config, GeneratorRunConfig):
        raise ConfigError("training: shard_weights is for generators; a tokenizer fits on every device")
    if not has_process_group():
        raise ConfigError(
            "training: shard_weights needs several processes; start them with torchrun, or train without it "
            "(--training.no-shard-weights where the preset asks for it)"
        )


def check_alike(shards: TokenShards, shown: TokenShards, config: GeneratorRunConfig) -> None:
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


def _saved(config: AnyRun, folder: RunFolder) -> AnyRun | None:
    """What the run in a folder was started with, if one was."""
    return from_dict(type(config), folder.read_config(), str(folder.config_file)) if folder.exists() else None


def for_tokens(config: GeneratorRunConfig, shards: TokenShards, origin: Origin = Origin()) -> GeneratorRunConfig:
    """The run for the codes or latents in some shards.

    Raises:
        ConfigError: they are of no use for it.
    """
    generator = fitted(config.generator, shards, origin.earlier, origin.language_model)
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


def start_from(task: TokenizerTask, source: str) -> None:
    """Put the weights of a trained tokenizer into the task's.

    Raises:
        ConfigError: its architecture differs, or a phase would forget its codebook.
    """
    if any(not phase.quantize for phase in task.config.training.phases):
        raise ConfigError(
            f"--init-from {source}: {task.config.name} begins without quantization, which redraws the codebook; "
            "use a preset for fine-tuning"
        )
    original = load(source)
    kind = task.tokenizer.config.kind
    if original.config.kind != kind:
        raise ConfigError(f"--init-from {source}: is of the kind {original.config.kind}, this run's tokenizer {kind}")
    check_same_model({"tokenizer": to_dict(task.tokenizer.config)}, {"tokenizer": to_dict(original.config)}, source)
    task.tokenizer.load_weights(original.weights(), f"--init-from {source}")


def start_generator_from(task: GeneratorTask, config: GeneratorRunConfig, source: str) -> None:
    """Put the weights of a trained generator into the task's.

    Raises:
        ConfigError: it is of another kind, writes for another tokenizer, knows other classes, or is built otherwise.
    """
    run, theirs, of = read_run(source)
    ours = config.generator
    if theirs.kind != ours.kind:
        raise ConfigError(f"--init-from {source}: is of the kind {theirs.kind}, this run's generator {ours.kind}")
    assert config.tokenizer is not None
    if of.sha256 != config.tokenizer.sha256:
        raise ConfigError(f"--init-from {source}: writes for another tokenizer than that of these data")
    if (known := getattr(theirs, "classes", ())) != (wanted := getattr(ours, "classes", ())):
        raise ConfigError(f"--init-from {source}: knows the classes {known}, these data have {wanted}")
    check_same_model({"generator": to_dict(ours)}, {"generator": to_dict(theirs)}, source)
    task.generator.load_weights(run.read_model(), f"--init-from {source}")


def check_same_model(ours: dict[str, Any], theirs: dict[str, Any], source: str) -> None:
    """A run's model must compute what the one that it begins with does.

    Raises:
        ConfigError: names the first setting that differs.
    """
    now, then = dict(_leaves(ours)), dict(_leaves(theirs))
    for name in sorted(now.keys() | then.keys()):
        if now.get(name) != then.get(name) and not name.startswith(_TRAINING_ONLY):
            raise ConfigError(
                f"--init-from {source}: has {name} = {then.get(name)}, this run {now.get(name)}; "
                "flags of this name make them alike"
            )


def check_same_run(config: AnyRunConfig, saved: AnyRunConfig, folder: RunFolder) -> None:
    """A resumed run must be the one that was started.

    Raises:
        ConfigError: names the first setting that differs.
    """
    now, then = dict(_leaves(to_dict(config))), dict(_leaves(to_dict(saved)))
    weights = [phase.weights for phase in config.training.phases]
    if isinstance(config, RunConfig):
        weights.append(config.losses.weights())
    of_one_pass = any(weight.get(term) for weight in weights for term in _OF_ONE_PASS)
    may_change = tuple(name for name in _MAY_CHANGE if not (of_one_pass and name == "training.micro_batch_size"))
    for name in sorted(now.keys() | then.keys()):
        if now.get(name) != then.get(name) and not name.startswith(may_change):
            raise ConfigError(
                f"{folder.path}: was started with {name} = {then.get(name)}, not {now.get(name)}; "
                "resume with the same settings, or start a new run with --init-from"
            )


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    children = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if children is None:
        yield prefix, values
    else:
        for key, value in children:
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
