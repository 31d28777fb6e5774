"""The teacher networks of a tokenizer: a metric that is computed through one of them is no evidence."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from imtok.checkpoints import RunFolder, shipped_runs
from imtok.config import ConfigError, InputError
from imtok.tokenizers.catalog import locate, shipped
from imtok.tokenizers.diffusers_models import find_model

UNKNOWN = "unknown"
"""Name that stands for teachers that are not known."""


def teachers_of(config: Mapping[str, Any]) -> frozenset[str]:
    """Return the networks behind all losses that have a weight in some phase of a run, such as `perceptual/vgg16`.

    The teachers of the weights from which the run was initialized are included.

    Args:
        config: the run's config.
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
    """Return the networks through which a tokenizer was trained; `UNKNOWN` if it is not in an imtok run folder.

    Raises:
        ConfigError: the run's config is damaged.
    """
    run = RunFolder(path)
    if not run.exists() or find_model(path) is not None:
        return frozenset({UNKNOWN})
    try:
        return teachers_of(run.read_config())
    except (AttributeError, KeyError, TypeError):
        raise ConfigError(f"{run.config_file}: its losses and phases are not those of a run") from None


def teachers_behind(run: str) -> frozenset[str]:
    """Return the teachers of the tokenizer of a generator's run; `UNKNOWN` if the run is not available.

    Args:
        run: the run's name or path as stored in a picture's file; it may be anything, such as a name too long for a
            file or a folder that is no run.
    """
    home = RunFolder(shipped_runs("generator").get(run, run))
    try:
        name = home.read_config()["tokenizer"]["name"]
        return teachers_of_weights(locate(name) if name in shipped() else home.path / name)
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return frozenset({UNKNOWN})


def teachers_behind_all(runs: Iterable[str | None]) -> frozenset[str]:
    """Return the teachers behind pictures of several runs, with `UNKNOWN` if the run of a picture is not known."""
    unknown = frozenset({UNKNOWN})
    return frozenset().union(*(unknown if run is None else teachers_behind(run) for run in dict.fromkeys(runs)))
