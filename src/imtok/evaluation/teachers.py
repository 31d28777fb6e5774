"""The networks that a tokenizer was trained through: a number that one of them gives is no evidence."""

from collections.abc import Iterable, Mapping
from typing import Any

from imtok.checkpoints import RunFolder, shipped_runs
from imtok.config import ConfigError
from imtok.tokenizers.catalog import locate, shipped


def teachers_of(config: Mapping[str, Any]) -> frozenset[str]:
    """The networks behind the losses that a run's config gives a weight in some phase, such as `perceptual/vgg16`."""
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
    return frozenset(network for network in taught if network)


def teachers_behind(run: str) -> frozenset[str] | None:
    """The networks that the tokenizer of a generator's run was trained through; None where the run is not here."""
    home = RunFolder(shipped_runs("generator").get(run, run))
    try:
        name = home.read_config()["tokenizer"]["name"]
        tokenizer = locate(name) if name in shipped() else home.path / name
        return teachers_of(RunFolder(tokenizer).read_config())
    except (ConfigError, KeyError, TypeError):
        return None


def teachers_behind_all(runs: Iterable[str | None]) -> frozenset[str] | None:
    """Those of pictures drawn by some generators; None where there are no pictures, or one's generator is not known."""
    found = [None if run is None else teachers_behind(run) for run in dict.fromkeys(runs)]
    known = [teachers for teachers in found if teachers is not None]
    return frozenset().union(*known) if known and len(known) == len(found) else None
