"""Start or resume a training run."""

import dataclasses
import os
from contextlib import nullcontext
from os import PathLike
from pathlib import Path

import torch

from imtok.checkpoints import RunFolder
from imtok.config import ConfigError
from imtok.data.filling import check_finished
from imtok.data.readers import open_dataset
from imtok.evaluation.teachers import teachers_of_weights
from imtok.layers.collective import barrier, has_process_group, mean_over_ranks, process_group, rank
from imtok.tokenizers.catalog import locate
from imtok.tokenizers.text import TextConditioner
from imtok.tokenizers.textok import TexTokConfig
from imtok.training.checks import check_pictures, check_scales
from imtok.training.data_modules import ImageDataModule
from imtok.training.launch_generator import generator_trainer
from imtok.training.run import AnyRunConfig, GeneratorRunConfig, RunConfig
from imtok.training.same_settings import check_same_run, saved_settings
from imtok.training.tasks import TokenizerTask
from imtok.training.trainer import Trainer
from imtok.training.validation import Validation
from imtok.training.warm_start import start_from


def train(
    config: AnyRunConfig,
    data: str | PathLike[str],
    out: str | PathLike[str],
    validation: str | PathLike[str] | None = None,
    resume: bool = False,
    init_from: str | PathLike[str] | None = None,
) -> Path:
    """Train a tokenizer or a generator through all its phases.

    Ctrl-C or SIGTERM stops the training after the current step: the state is saved and KeyboardInterrupt is raised.
    Under torchrun, all processes call this function alike; torchrun kills them 30 seconds after a signal, even if the
    state is not saved yet.

    Args:
        config: config of the run: a preset, as it is or changed.
        data: Parquet shards (see `imtok annotate` and `imtok synthesize`) or whatever else `open_dataset` reads; for a
            generator token shards (see `imtok encode`).
        out: run folder.
        validation: held-out pictures for previews and the evaluation; without them previews show training pictures.
        resume: resume the run in `out`, which must have the same settings and number of pictures; if there is no run
            yet, start it.
        init_from: initialize the weights from this run, shipped tokenizer or other project's checkpoint.

    Returns:
        The run folder.

    Raises:
        ConfigError: settings or data do not fit, `out` holds something else, or another process trains there; one line.
        DataError: the data cannot be read, or `imtok annotate` has not finished.
        MissingWeights: a network that some phase needs is not available.
        TrainingStopped: the watchdog stopped the run.
    """
    folder, data = RunFolder(out), os.fspath(data)
    validation, init_from = (None if path is None else os.fspath(path) for path in (validation, init_from))
    with process_group() as device:
        started = _has_begun(folder, device)
        if not started:
            folder.check_vacant()
        barrier()  # all ranks have checked before the first one creates the folder
        if started and not resume:
            raise ConfigError(f"{out}: already holds a run; give --resume to go on with it, or another folder")
        if config.training.shard_weights:
            check_can_shard(config)
        begin = None if started else init_from
        if isinstance(config, GeneratorRunConfig):
            trainer = generator_trainer(config, data, folder, validation, begin, device)
        else:
            trainer = _tokenizer_trainer(config, data, folder, validation, begin, device)
        with folder.held() if rank() == 0 else nullcontext():
            if rank() == 0 and folder.exists() != started:
                raise ConfigError(f"{out}: another process has begun a run here meanwhile; name another folder")
            trainer.run(resume=started)
    return folder.path


def _has_begun(folder: RunFolder, device: torch.device) -> bool:
    """Return whether there is a run to resume, which all ranks must agree on.

    Raises:
        ConfigError: only some ranks find a run.
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
    saved, text_conditioner = saved_settings(config, folder), None
    if isinstance(config.tokenizer, TexTokConfig) and config.tokenizer.text is not None:
        text = config.tokenizer.text.with_weights_of(None if saved is None else getattr(saved.tokenizer, "text", None))
        text_conditioner = TextConditioner(text, [data] if validation is None else [data, validation], device)
        text_conditioner.require_text()
        text_conditioner.prepare()
        tokenizer = dataclasses.replace(config.tokenizer, text=text_conditioner.config)
        config = dataclasses.replace(config, tokenizer=tokenizer)
    if begin:
        config = dataclasses.replace(config, earlier_teachers=tuple(sorted(teachers_of_weights(locate(begin)))))
    if saved is not None:
        config = dataclasses.replace(config, earlier_teachers=saved.earlier_teachers)
        check_same_run(config, saved, folder)
    torch.manual_seed(config.training.seed)  # independent of random numbers drawn so far, as for an encoder
    task = TokenizerTask(config, text_conditioner)
    if begin:
        start_from(task, begin)
    for shards in (data, validation or data):
        check_finished(shards)
    source = open_dataset(data)
    check_pictures(config, source)
    check_scales(config)
    shown = source if validation is None else open_dataset(validation)
    evaluator = Validation(config, shown, held_out=validation is not None, text_conditioner=text_conditioner)
    return Trainer(config, task, ImageDataModule(source, config.data), evaluator, folder, device)


def check_can_shard(config: AnyRunConfig) -> None:
    """Check that a run's weights can be sharded across the processes; to be called before any weights are created.

    Raises:
        ConfigError: the run is a tokenizer's, or there is no process group.
    """
    if not isinstance(config, GeneratorRunConfig):
        raise ConfigError("training: shard_weights is for generators; a tokenizer fits on every device")
    if not has_process_group():
        raise ConfigError(
            "training: shard_weights needs several processes; start them with torchrun, or train without it "
            "(--training.no-shard-weights where the preset asks for it)"
        )
