"""Check that a resumed run, or the model from which a run is initialized, has the same settings."""

from collections.abc import Iterator
from typing import Any, TypeVar

from imtok.checkpoints import RunFolder
from imtok.config import ConfigError, from_dict, to_dict
from imtok.training.run import AnyRunConfig, GeneratorRunConfig, RunConfig

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
"""Settings that a resumed run may change: they affect how steps are computed and monitored, not their result."""

_PER_PASS_LOSSES = ("entropy", "representation")
"""Losses that compare the pictures of one forward pass, and therefore depend on the size of a micro-batch."""

_TRAINING_ONLY = (
    "tokenizer.start",
    "tokenizer.quantizer.decay",
    "tokenizer.quantizer.restart_threshold",
    "tokenizer.quantizer.entropy_temperature",
    "generator.dropout",
    "generator.condition_dropout",
    "generator.language_model",
)
"""Settings that do not matter for trained weights."""


def saved_settings(config: AnyRun, folder: RunFolder) -> AnyRun | None:
    """Return the settings that the run in a folder was started with; None if there is no run."""
    return from_dict(type(config), folder.read_config(), str(folder.config_file)) if folder.exists() else None


def check_same_model(ours: dict[str, Any], theirs: dict[str, Any], source: str) -> None:
    """Check that a run's model computes the same as the model from which it is initialized.

    Raises:
        ConfigError: a setting differs; the message names the first one.
    """
    now, then = dict(_leaves(ours)), dict(_leaves(theirs))
    for name in sorted(now.keys() | then.keys()):
        if now.get(name) != then.get(name) and not name.startswith(_TRAINING_ONLY):
            raise ConfigError(
                f"--init-from {source}: has {name} = {then.get(name)}, this run {now.get(name)}; "
                "flags of this name make them alike"
            )


def check_same_run(config: AnyRunConfig, saved: AnyRunConfig, folder: RunFolder) -> None:
    """Check that a resumed run has the settings with which it was started.

    Raises:
        ConfigError: a setting differs; the message names the first one.
    """
    now, then = dict(_leaves(to_dict(config))), dict(_leaves(to_dict(saved)))
    weights = [phase.weights for phase in config.training.phases]
    if isinstance(config, RunConfig):
        weights.append(config.losses.weights())
    compares_batch = any(weight.get(term) for weight in weights for term in _PER_PASS_LOSSES)
    may_change = tuple(name for name in _MAY_CHANGE if not (compares_batch and name == "training.micro_batch_size"))
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
