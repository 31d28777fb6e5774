"""The networks that a tokenizer was trained through: a number that one of them gives is no evidence."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from imtok.checkpoints import RunFolder, shipped_runs
from imtok.config import ConfigError, InputError
from imtok.tokenizers.catalog import locate, shipped
from imtok.tokenizers.diffusers_models import find_model

UNKNOWN = "unknown"
"""Stands among the teachers for those that nobody here knows."""


def teachers_of(config: Mapping[str, Any]) -> frozenset[str]:
    """The networks behind the losses that a run's config gives a weight in some phase, such as `perceptual/vgg16`.

    Networks that had taught the weights from which the run began are among them.
    """
    losses = config.get("losses", {})
    phases = config.get("training", {}).get("phases", [])
    networks = {
        "perceptual": [losses.get("perceptual_network")],
        "text": [losses.get("text", {}).get("network")],
        "face": [losses.get("face", {}).get("network")],
        "ocr": [losses.get("ocr_network")],
        "representation": [target["network"] for target in losses.get("representation", {}).get("targets", [])],
    }
    weights = [{t: losses.get(f"{t}_weight", 0) for t in networks} | phase.get("weights", {}) for phase in phases]
    taught = [network for term, found in networks.items() for network in found if any(w[term] for w in weights)]
    return frozenset(network for network in taught if network) | frozenset(config.get("earlier_teachers", ()))


def teachers_of_weights(path: Path) -> frozenset[str]:
    """The networks that a tokenizer was trained through: `UNKNOWN` where it lies in no run folder of ours.

    Raises:
        ConfigError: a damaged config.
    """
    run = RunFolder(path)
    if not run.exists() or find_model(path) is not None:
        return frozenset({UNKNOWN})
    try:
        return teachers_of(run.read_config())
    except (AttributeError, KeyError, TypeError):
        raise ConfigError(f"{run.config_file}: its losses and phases are not those of a run") from None


def teachers_behind(run: str) -> frozenset[str]:
    """The networks that the tokenizer of a generator's run was trained through; `UNKNOWN` if the run is not here.

    `run` is what a picture's file says, which may be anything: a name too long for a file, a folder of somebody else.
    """
    home = RunFolder(shipped_runs("generator").get(run, run))
    try:
        name = home.read_config()["tokenizer"]["name"]
        return teachers_of_weights(locate(name) if name in shipped() else home.path / name)
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return frozenset({UNKNOWN})


def teachers_behind_all(runs: Iterable[str | None]) -> frozenset[str]:
    """Those of pictures drawn by some generators; `UNKNOWN` is among them if one's generator is not known."""
    unknown = frozenset({UNKNOWN})
    return frozenset().union(*(unknown if run is None else teachers_behind(run) for run in dict.fromkeys(runs)))
