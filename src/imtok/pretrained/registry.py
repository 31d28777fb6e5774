"""Access to third-party networks: status, download and loading."""

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
    """The weights of a network are missing; the one-line message describes it, its licence, and how to get it."""


@dataclass(frozen=True, kw_only=True)
class WeightStatus:
    """A row of `imtok weights`; for a network with several files, `sha256` is the digest of their digests."""

    name: str
    what: str
    present: bool
    licence: str
    source: str
    sha256: str


def load(name: str, file: str | Path | None = None) -> Any:
    """Load the network `role/name`, frozen and in eval mode. Nothing is downloaded; use `fetch` for that.

    Args:
        name: key in `REGISTRY`.
        file: weights of a network that no package contains: a state dict file (.safetensors, or a torch file, which is
            read without executing code), an already fetched `hf://owner/repository/path`, or, for networks such as T5,
            a folder. By default they are searched at the path that the message of `MissingWeights` names.

    Returns:
        An object that depends on the role: a `FeatureNetwork`, or a detector, reader or encoder. All have `name` and
        `sha256`.

    Raises:
        MissingWeights: the weights are missing.
        ConfigError: the network is unknown, or the file does not fit it.
    """
    entry = _entry(name)
    paths = _find(name, entry, file)
    if paths is None:
        raise MissingWeights(_missing_message(name, entry, file))
    try:
        network = entry.load(*paths)
    except ModuleNotFoundError as error:
        raise MissingWeights(f"{name} needs {error.name}; `pip install 'imtok[networks]'` brings it") from None
    network.name = name
    if entry.program is None:  # a program sets its own digest
        network.sha256 = network.sha256 or _combined_digest([sha256_of(path) for path in _weight_files(paths)])
    return network.freeze() if isinstance(network, FrozenNetwork) else network


def fetch(names: list[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Download missing weights with pip, npm or the Hub's client; files are stored only if complete and verified.

    Args:
        names: networks (`role/name`) or Hub files (`hf://owner/repository/path`); None: all networks in packages.
        say: called with one line of progress per step.

    Raises:
        MissingWeights: a download is impossible or failed (one-line message).
        ConfigError: a network is unknown.
    """
    addresses = [name for name in names or [] if name.startswith(hub.PREFIX)]
    if names is None:
        wanted = {name: entry for name, entry in REGISTRY.items() if entry.package is not None}
    else:
        wanted = {name: _entry(name) for name in names if name not in addresses}
    for name, entry in wanted.items():
        if _find(name, entry) is not None:
            say(f"{name}: present")
            continue
        if entry.hub:
            addresses.append(entry.hub)
            continue
        if entry.package is None:
            raise MissingWeights(_missing_message(name, entry))
        say(f"{name}: downloading {entry.package}, licence {entry.licence}")
        # One download serves all wanted networks whose files are in this package.
        files = {file for other in wanted.values() if other.package == entry.package for file in other.files}
        try:
            fetch_files(entry.package, tuple(files))
        except (FetchError, OSError) as error:
            raise MissingWeights(f"{name}: {error}") from None
        say(f"{name}: ready, {_megabytes(entry)} in {cache_folder()}")
    for address in addresses:
        say(f"{address}: downloading")
        try:
            say(f"{address}: ready, {hub.find_hub_file(address, download=True)}")
        except OSError as error:
            raise MissingWeights(f"{address}: {error}") from None


def status() -> list[WeightStatus]:
    """Return one row per network: whether valid files are present, its licence, and its source."""
    return [
        WeightStatus(
            name=name,
            what=entry.what,
            present=_find(name, entry) is not None,
            licence=entry.licence,
            source=str(entry.package or entry.program or entry.hub) or f"a file of yours: {_default_path(name, entry)}",
            sha256=_combined_digest([file.sha256 for file in entry.files]),
        )
        for name, entry in REGISTRY.items()
    ]


def _entry(name: str) -> NetworkEntry:
    if name not in REGISTRY:
        raise ConfigError(f"{name}: no such network; {suggest(name, sorted(REGISTRY))}")
    return REGISTRY[name]


def _find(name: str, entry: NetworkEntry, file: str | Path | None = None) -> list[Path] | None:
    """Return the files that the network is built from, or None if one is missing."""
    if entry.package is None and entry.program is None:
        return _find_user_file(name, entry, file)
    if file is not None:
        raise ConfigError(f"{name}: a file of yours cannot stand in for {entry.package or entry.program}")
    if entry.package is None:
        program = shutil.which(str(entry.program))
        return None if program is None else [Path(program)]
    found = [find_file(entry.package, wanted) for wanted in entry.files]
    present = [path for path in found if path is not None]
    return present if len(present) == len(found) else None


def _find_user_file(name: str, entry: NetworkEntry, file: str | Path | None) -> list[Path] | None:
    default = _own_place(name, entry)
    if file is not None:
        address = str(file)
        candidates = [hub.find_hub_file(address) if address.startswith(hub.PREFIX) else Path(file)]
    elif entry.folder:
        candidates = [default.with_suffix("")]
    else:
        candidates = [default.with_suffix(".safetensors"), default, *([_fetched(entry.hub)] if entry.hub else [])]
    found = (path for path in candidates if path is not None and (path.is_dir() if entry.folder else path.is_file()))
    return next(([path] for path in found), None)


def _weight_files(paths: list[Path]) -> list[Path]:
    """Return the given files, and for folders the files in them from which a network is loaded."""
    patterns = ("config.json", "tokenizer.json", "spiece.model", "*.safetensors", "*.bin", "*.pth")
    return [
        file
        for path in paths
        for file in (sorted(f for pattern in patterns for f in path.glob(pattern)) if path.is_dir() else [path])
    ]


def _own_place(name: str, entry: NetworkEntry) -> Path:
    return cache_folder() / "own" / f"{name.replace('/', '-')}{entry.suffix}"


def _default_path(name: str, entry: NetworkEntry) -> Path:
    path = _own_place(name, entry)
    return path.with_suffix("") if entry.folder else path


def _fetched(address: str) -> Path | None:
    try:
        return hub.find_hub_file(address)
    except ConfigError:  # without the Hub's client nothing has been fetched
        return None


def _missing_message(name: str, entry: NetworkEntry, file: str | Path | None = None) -> str:
    missing = f"{name} is missing: {entry.what}; licence: {entry.licence}; "
    if entry.package is not None:
        return missing + f"`imtok weights fetch {name}` gets {entry.package}, {_megabytes(entry)} of which are kept"
    if entry.program is not None:
        return missing + entry.hint
    if isinstance(file, str) and file.startswith(hub.PREFIX):
        return missing + f"`imtok weights fetch {file}` gets it"
    if entry.hub and file is None:
        return missing + f"`imtok weights fetch {name}` gets {entry.hub}, or put it at {_default_path(name, entry)}"
    return missing + f"there is no {file or _default_path(name, entry)}; {entry.hint}"


def _megabytes(entry: NetworkEntry) -> str:
    return f"{sum(file.size for file in entry.files) / 1e6:.1f} MB"


def _combined_digest(digests: list[str]) -> str:
    """Return a single digest as it is, the digest of several digests, or an empty text for none."""
    if len(digests) > 1:
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    return "".join(digests)
