"""Meters of sets as a whole: reconstructions against originals, and generated pictures against a reference set."""

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from imtok.config import ConfigError
from imtok.data.pictures import Picture, from_uint8
from imtok.evaluation.cache import EvaluationCache, key_of
from imtok.evaluation.generated_meters import Generated, GeneratedMeter
from imtok.evaluation.meters import Measurement, Meter, OriginalPicture, ReconstructedPicture, check_finite, device_of
from imtok.evaluation.metrics import FeatureStatistics, Moments, frechet_distance
from imtok.evaluation.set_metrics import CLASS_PARTS, NEIGHBOURS, ClassScore, covered, disjoint_parts, neighbour_radii
from imtok.pretrained.networks import ExtractedFeatures, FeatureExtractor

FRECHET_PARTS = 4
"""Number of disjoint parts of a set; their distances show the variation of the metric, which resampling would bias."""
_FRECHET = ("frechet", "spatial")


@torch.no_grad()
def extract_features(network: FeatureExtractor, pictures: Sequence[Picture], device: torch.device) -> ExtractedFeatures:
    """Return a network's features and logits of pictures of one size, in fp32 on the CPU.

    Raises:
        ConfigError: the network outputs NaN or infinity.
    """
    extracted = network.extract_features(from_uint8(np.stack(pictures)).to(device))
    kinds = (extracted.pooled, extracted.spatial, extracted.logits)
    return ExtractedFeatures(*(check_finite(features.float().cpu(), network.name) for features in kinds))


class PartedStatistics:
    """Feature statistics of the disjoint parts of a set, and thereby of the whole set."""

    def __init__(self) -> None:
        self.parts = [FeatureStatistics() for _ in range(FRECHET_PARTS)]

    def add(self, features: Tensor, part_of: Tensor) -> None:
        """Add the features of more pictures, with the number of the part that each belongs to."""
        for number, part in enumerate(self.parts):
            if (members := part_of == number).any():
                part.add(features[members])

    def whole(self) -> FeatureStatistics:
        """Return the statistics of the whole set."""
        return FeatureStatistics.joined(self.parts)


class ClassScores:
    """Class score of a set: the mean of the class scores of its disjoint parts.

    Args:
        network: classifier whose logits are scored.
        total: number of pictures in the set.
    """

    def __init__(self, network: FeatureExtractor, total: int) -> None:
        self._network = network
        self._part_of, self._seen = disjoint_parts(total, CLASS_PARTS), 0
        self._parts = [ClassScore() for _ in range(CLASS_PARTS)]

    def add(self, logits: Tensor) -> None:
        """Add the logits of the set's next pictures."""
        part_of = self._part_of[self._seen : self._seen + len(logits)]
        self._seen += len(logits)
        for part, score in enumerate(self._parts):
            score.add(logits[part_of == part])

    def measure(self) -> Measurement:
        """Return the mean over the parts.

        Raises:
            ValueError: there are no pictures.
        """
        parts = [score.value() for score in self._parts if score.count]
        if not parts:
            raise ValueError("no pictures to score")
        note = f"mean of {len(parts)} disjoint parts, shuffled as torch-fidelity does; biased downwards by few pictures"
        return Measurement(
            value=float(np.mean(parts)),
            parts=parts,
            network=self._network.name,
            sha256=self._network.sha256,
            note=note,
            count=self._seen,
        )


@dataclass(frozen=True)
class ReconstructionFeatures:
    """A classifier's features of a batch.

    Attributes:
        originals: pooled features of the originals.
        reconstructions: pooled features and logits of each reconstructor's reconstructions.
    """

    originals: Tensor
    reconstructions: dict[str, tuple[Tensor, Tensor]]


class FeatureMeter(Meter[ReconstructionFeatures]):
    """Fréchet distance between originals and reconstructions, and class score of the reconstructions.

    With Inception-v3 these are FID and inception score, called rFID and rIS in papers on tokenizers.

    Args:
        network: feature network whose pooled features are compared.
        metrics: names of the distance and of the class score.
        total: number of pictures in the set, which determines the parts of the class score.
        cache: cache of the originals' features, one entry per batch, because their last digits depend on the
            composition of the batch.
    """

    def __init__(
        self,
        network: FeatureExtractor,
        metrics: tuple[str, str],
        total: int,
        cache: EvaluationCache | None = None,
    ) -> None:
        self.network, self._device = network, device_of(network)
        self._distance, self._class_score = metrics
        self.what = " and ".join(metrics)
        self._cache = cache or EvaluationCache()
        self._originals = PartedStatistics()
        self._reconstructions = defaultdict(PartedStatistics)
        self._classes = defaultdict(partial(ClassScores, network, total))

    def process(
        self, originals: Sequence[OriginalPicture], reconstructions: Mapping[str, Sequence[ReconstructedPicture]]
    ) -> ReconstructionFeatures:
        return ReconstructionFeatures(
            originals=self._features_of_originals([picture.prepared for picture in originals]),
            reconstructions={
                name: self._extract_features([picture.output.picture for picture in pictures])
                for name, pictures in reconstructions.items()
            },
        )

    def _features_of_originals(self, originals: Sequence[Picture]) -> Tensor:
        """Return the pooled features of a batch of originals, from the cache if it has them."""
        shapes = [list(picture.shape) for picture in originals]
        pixels = b"".join(picture.tobytes() for picture in originals)
        key = key_of(self.network, pixels, ["pooled", str(self._device.type), shapes])

        def extract(_: list[int]) -> list[str]:
            return [base64.b64encode(self._extract_features(originals)[0].float().numpy().tobytes()).decode()]

        (encoded,) = self._cache.get_or_compute([key], extract)
        values = np.frombuffer(base64.b64decode(encoded), dtype=np.float32)
        return torch.from_numpy(values.reshape(len(originals), -1).copy())

    def _extract_features(self, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        features = extract_features(self.network, pictures, self._device)
        return features.pooled, features.logits

    def add(self, found: ReconstructionFeatures, groups: Sequence[int]) -> None:
        part_of = torch.tensor(groups) % FRECHET_PARTS  # all pictures of a group are in one part
        self._originals.add(found.originals, part_of)
        for name, (pooled, logits) in found.reconstructions.items():
            self._reconstructions[name].add(pooled, part_of)
            self._classes[name].add(logits)

    def results(self, name: str) -> dict[str, Measurement]:
        originals, reconstructions = self._originals, self._reconstructions[name]
        whole = originals.whole()
        if not whole.count:
            return {}
        class_score = self._classes[name].measure()
        if whole.count < 2:
            return {self._class_score: class_score}
        parts = [
            frechet_distance(a, b) for a, b in zip(originals.parts, reconstructions.parts, strict=True) if a.count >= 2
        ]
        return {
            self._distance: Measurement(
                value=frechet_distance(whole, reconstructions.whole()),
                parts=parts,
                network=self.network.name,
                sha256=self.network.sha256,
                note=f"parts: {len(parts)} of whole groups; biased upwards by few pictures",
                count=whole.count,
            ),
            self._class_score: class_score,
        }


@dataclass(frozen=True)
class BatchFeatures:
    """A network's features of a batch of pictures of one size, in fp32.

    Attributes:
        size: height and width of the pictures.
        path: path of the first picture, for error messages.
        pooled: pooled features, for Fréchet distance, precision and recall.
        spatial: spatial features, for the spatial Fréchet distance.
        logits: class logits, for the class score.
    """

    size: tuple[int, int]
    path: str
    pooled: Tensor
    spatial: Tensor
    logits: Tensor


class SetMeter(GeneratedMeter[BatchFeatures]):
    """Fréchet distances, class score, precision and recall, computed with one feature network.

    Only features are kept in memory: for Fréchet distances reduced to their moments, for precision and recall one fp32
    vector per picture.

    Args:
        network: feature network.
        kinds: kind of each wanted metric, by metric name: `frechet`, `spatial`, `classes`, `precision` or `recall`.
        total: number of generated pictures.
        given: precomputed mean and covariance of the reference, by kind: `frechet` or `spatial`.
    """

    def __init__(
        self,
        network: FeatureExtractor,
        kinds: Mapping[str, str],
        total: int,
        given: Mapping[str, Moments] | None = None,
    ) -> None:
        self.network, self._kinds = network, dict(kinds)
        self.metrics = tuple(self._kinds)
        self._device = device_of(network)
        self._quarters = disjoint_parts(total, FRECHET_PARTS)
        self._given = given or {}
        self._moments = {kind: PartedStatistics() for kind in _FRECHET}
        self._reference = {kind: FeatureStatistics() for kind in _FRECHET}
        self._classes = ClassScores(network, total)
        self._features: list[Tensor] = []
        self._quarter_of: list[int] = []
        self._reference_features: list[Tensor] = []
        self._size: tuple[int, int] | None = None
        self._seen = 0

    @property
    def compared(self) -> tuple[str, ...]:
        """The metrics that need the pictures of a reference."""
        return tuple(name for name, kind in self._kinds.items() if kind not in {"classes", *self._given})

    @property
    def by_statistics(self) -> tuple[str, ...]:
        """The metrics for which precomputed statistics replace the pictures of the reference."""
        return tuple(name for name, kind in self._kinds.items() if kind in self._given)

    def process(self, batch: Sequence[Generated]) -> BatchFeatures:
        return self.extract_features([generated.picture for generated in batch], batch[0].sample.path)

    def extract_features(self, pictures: Sequence[Picture], path: str) -> BatchFeatures:
        """Return the network's features of pictures of one size; `path` is that of the first picture."""
        features = extract_features(self.network, pictures, self._device)
        return BatchFeatures(pictures[0].shape[:2], path, features.pooled, features.spatial, features.logits)

    def add(self, found: BatchFeatures, groups: Sequence[int]) -> None:
        self._check_size(found)
        rows = slice(self._seen, self._seen + len(found.pooled))
        self._seen = rows.stop
        for kind, features in (("frechet", found.pooled), ("spatial", found.spatial)):
            if kind in self._kinds.values():
                self._moments[kind].add(features, torch.from_numpy(self._quarters[rows]))
        self._classes.add(found.logits)
        if self._keeps_features:
            self._features.append(found.pooled)
            self._quarter_of += self._quarters[rows].tolist()

    def add_reference(self, found: BatchFeatures) -> None:
        """Add the features of more pictures of the reference.

        Raises:
            ConfigError: their size differs from that of the generated pictures.
        """
        self._check_size(found)
        for kind, features in (("frechet", found.pooled), ("spatial", found.spatial)):
            if kind in self._kinds.values() and kind not in self._given:
                self._reference[kind].add(features)
        if self._keeps_features:
            self._reference_features.append(found.pooled)

    def measure(self, metric: str) -> Measurement:
        kind = self._kinds[metric]
        try:
            if kind == "classes":
                return self._classes.measure()
            value, parts, count, note = (self._frechet if kind in _FRECHET else self._precision_and_recall)(kind)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        name, sha256 = self.network.name, self.network.sha256
        return Measurement(value=value, parts=parts, count=count, note=note, network=name, sha256=sha256)

    @property
    def _keeps_features(self) -> bool:
        return bool({"precision", "recall"} & set(self._kinds.values()))

    def _check_size(self, found: BatchFeatures) -> None:
        self._size = self._size or found.size
        if found.size != self._size:
            (height, width), (h, w) = found.size, self._size
            raise ConfigError(
                f"{found.path}: has {width} x {height} pixels, the generated pictures {w} x {h}; sets are compared at "
                "one size (--size crops and resizes the reference)"
            )

    def _frechet(self, kind: str) -> tuple[float, list[float], int, str]:
        reference = self._given.get(kind, self._reference[kind])
        if isinstance(reference, FeatureStatistics):
            if not reference.count:
                raise ValueError("the reference has no pictures, and no statistics of this network and kind")
            if reference.count < 2:
                raise ValueError(f"the reference needs two pictures or more, got {reference.count}")
            description = f"{reference.count} reference pictures"
        else:
            description = "given statistics of the reference"
        parts, whole = self._moments[kind].parts, self._moments[kind].whole()
        if whole.count < 2:
            raise ValueError(f"needs two pictures or more, got {whole.count}")
        if isinstance(reference, Moments) and len(reference.mean) != whole.dim:
            raise ValueError(
                f"the given statistics are of {len(reference.mean)} features, the pictures' of {whole.dim}"
            )
        distances = [frechet_distance(part, reference) for part in parts if part.count >= 2]
        note = f"against {description}; parts: quarters of the pictures; biased upwards by few pictures"
        return frechet_distance(whole, reference), distances, whole.count, note

    def _precision_and_recall(self, kind: str) -> tuple[float, list[float], int, str]:
        """Return value, parts, count and note; the parts compare quarters of the pictures with the whole reference."""
        if not self._reference_features:
            raise ValueError("needs the pictures of a reference, not only its statistics")
        # Concatenated only for this call, because these are the largest tensors here.
        generated, reference = (
            torch.cat(batches).to(self._device) for batches in (self._features, self._reference_features)
        )
        centres, owner = (reference, "the reference") if kind == "precision" else (generated, "the set")
        if len(centres) <= NEIGHBOURS:
            raise ValueError(f"{kind} needs {NEIGHBOURS + 1} pictures or more in {owner}, got {len(centres)}")
        quarter_of = torch.tensor(self._quarter_of, device=self._device)
        note = f"k = {NEIGHBOURS}; against {len(reference)} reference pictures; parts: quarters of the pictures"
        if kind == "precision":
            inside = covered(generated, reference, neighbour_radii(reference)).float()
            parts = [float(inside[quarter_of == part].mean()) for part in quarter_of.unique()]
            return float(inside.mean()), parts, len(generated), note
        parts = []
        for part in range(FRECHET_PARTS):
            quarter = generated[quarter_of == part]
            if len(quarter) > NEIGHBOURS:
                parts.append(float(covered(reference, quarter, neighbour_radii(quarter)).float().mean()))
        return (
            float(covered(reference, generated, neighbour_radii(generated)).float().mean()),
            parts,
            len(generated),
            note,
        )
