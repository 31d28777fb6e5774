"""Reference sets: pictures, precomputed statistics, and .npz files with both."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from imtok import pretrained
from imtok.config import ConfigError
from imtok.data.addresses import file_part, sha256_of_address
from imtok.data.npz import NpzWriter, holds_pictures, read_arrays
from imtok.data.pictures import decode
from imtok.data.readers import open_dataset
from imtok.data.sample import DataError, Dataset
from imtok.evaluation.metrics import FeatureStatistics, Moments
from imtok.evaluation.preprocessing import CentreCrop
from imtok.evaluation.set_meters import extract_features
from imtok.evaluation.sets import check_limits
from imtok.layers.collective import best_device

INCEPTION = "vision/inception"
STATISTICS = {"frechet": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
"""Names of mean and covariance in ADM's .npz files, by kind; they are of Inception's features."""
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A set to compare with, given by pictures, statistics or both.

    Attributes:
        name: its location.
        source: its pictures; None if it has only statistics.
        statistics: precomputed statistics by kind, `frechet` and `spatial`.
        sha256: hash of the .npz file; None for other sets, whose pictures are hashed when they are processed.
    """

    name: str
    source: Dataset | None
    statistics: Mapping[str, Moments] = field(default_factory=dict)
    sha256: str | None = None

    @property
    def pictures(self) -> int:
        """Number of pictures that it contains, whether or not they are used."""
        return 0 if self.source is None else len(self.source)


def open_reference(place: str) -> Reference:
    """Open a reference: anything that `open_dataset` reads, or an .npz file with pictures, statistics or both.

    Raises:
        DataError: there are neither pictures nor statistics, or the statistics are invalid.
    """
    if not file_part(place).lower().endswith(".npz"):
        return Reference(name=place, source=open_dataset(place))
    arrays = read_arrays(place, [name for pair in STATISTICS.values() for name in pair])
    statistics: dict[str, Moments] = {}
    for kind, (mean, covariance) in STATISTICS.items():
        if mean not in arrays or covariance not in arrays:
            continue
        if arrays[mean].ndim != 1 or arrays[covariance].shape != arrays[mean].shape * 2:
            raise DataError(f"{place}: {mean} {arrays[mean].shape} and {covariance} {arrays[covariance].shape} differ")
        pair = [arrays[name] for name in (mean, covariance)]
        if not all(array.dtype.kind in "fiu" and np.isfinite(array).all() for array in pair):
            raise DataError(f"{place}: {mean} and {covariance} hold something else than finite numbers")
        statistics[kind] = Moments(*(torch.from_numpy(array.astype(np.float64)) for array in pair))
    source = None if statistics and not holds_pictures(place) else open_dataset(place)
    return Reference(name=place, source=source, statistics=statistics, sha256=sha256_of_address(place))


@torch.no_grad()
def pack(pictures: str, out: str | Path, statistics: bool = False, size: int | None = None) -> int:
    """Write pictures to one .npz file in ADM's layout, one picture at a time.

    Args:
        pictures: anything that `open_dataset` reads; all pictures must have one size unless `size` is given.
        out: the file to write, NAME.npz.
        statistics: also store `mu`, `sigma`, `mu_s` and `sigma_s` of the Inception features.
        size: side in pixels of the centred squares to which the pictures are cropped.

    Returns:
        Number of pictures.

    Raises:
        ConfigError: `out` is not an .npz file, the size is too small, or Inception outputs NaN or infinity.
        DataError: the pictures differ in size, one cannot be read, or there are too few for statistics; nothing is
            written.
        MissingWeights: statistics are requested, and Inception is not installed.
    """
    out = Path(out)
    if out.suffix != ".npz":
        raise ConfigError(f"{out}: name it {out.stem}.npz")
    check_limits(size)
    network = pretrained.load(INCEPTION).to(best_device()) if statistics else None
    source = open_dataset(pictures)
    by_kind = {kind: FeatureStatistics() for kind in STATISTICS}
    batch = []
    with NpzWriter(out, len(source)) as writer:
        for row in tqdm(range(len(source)), unit=" pictures", disable=None):
            sample = source[row]
            picture = decode(sample.image, sample.path)
            picture = picture if size is None else CentreCrop(size).pixels(picture)
            writer.write(picture, sample.path)
            batch.append(picture)
            if network is not None and (len(batch) == _BATCH or row == len(source) - 1):
                features = extract_features(network, batch, best_device())
                by_kind["frechet"].add(features.pooled)
                by_kind["spatial"].add(features.spatial)
                batch = []
            elif network is None:
                batch = []
        if network is not None:
            if len(source) < 2:
                raise DataError(f"{pictures}: statistics need two pictures or more")
            for kind, (mean, covariance) in STATISTICS.items():
                moments = by_kind[kind].moments()
                writer.add(mean, moments.mean.numpy())
                writer.add(covariance, moments.covariance.numpy())
    return len(source)
