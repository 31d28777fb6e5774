"""Meters of sets as a whole: reconstructions against their originals, generated pictures against a reference."""

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
"""Disjoint parts of the set whose distances show how much the number varies: resampling would bias it."""
_FRECHET = ("frechet", "spatial")


@torch.no_grad()
def extract_features(network: FeatureExtractor, pictures: Sequence[Picture], device: torch.device) -> ExtractedFeatures:
    """What a network says of pictures of one size, in fp32 on the CPU.

    Raises:
        ConfigError: it answers NaN or infinity.
    """
    found = network.extract_features(from_uint8(np.stack(pictures)).to(device))
    kinds = (found.pooled, found.spatial, found.logits)
    return ExtractedFeatures(*(check_finite(features.float().cpu(), network.name) for features in kinds))


class PartedStatistics:
    """Feature vectors of a set's disjoint parts, which together are those of the set."""

    def __init__(self) -> None:
        self.parts = [FeatureStatistics() for _ in range(FRECHET_PARTS)]

    def add(self, features: Tensor, part_of: Tensor) -> None:
        """More pictures, and the part of each."""
        for number, part in enumerate(self.parts):
            if (mine := part_of == number).any():
                part.add(features[mine])

    def whole(self) -> FeatureStatistics:
        """Of the set."""
        return FeatureStatistics.joined(self.parts)


class ClassScores:
    """The class score on each of a set's disjoint parts, whose mean is the set's.

    Args:
        network: whose classes they are.
        total: how many pictures the set has.
    """

    def __init__(self, network: FeatureExtractor, total: int) -> None:
        self._network = network
        self._part_of, self._seen = disjoint_parts(total, CLASS_PARTS), 0
        self._parts = [ClassScore() for _ in range(CLASS_PARTS)]

    def add(self, logits: Tensor) -> None:
        """Of the set's next pictures."""
        part_of = self._part_of[self._seen : self._seen + len(logits)]
        self._seen += len(logits)
        for part, score in enumerate(self._parts):
            score.add(logits[part_of == part])

    def measure(self) -> Measurement:
        """The mean.

        Raises:
            ValueError: no pictures.
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
    """What a classifier says of a batch: pooled features of the originals, and of each reconstructor's with the logits."""

    originals: Tensor
    drawn: dict[str, tuple[Tensor, Tensor]]


class FrechetMeter(Meter[ReconstructionFeatures]):
    """Fréchet distance between the features of all originals and of all reconstructions.

    Args:
        network: whose pooled features are compared.
        metric: the distance's name.
        cache: keeps the originals' features, batch by batch: their last digits depend on who shares a batch.
    """

    def __init__(
        self, network: FeatureExtractor, metric: str = "fd_efficientnet_lite0", cache: EvaluationCache | None = None
    ) -> None:
        self.network, self.metric, self._device = network, metric, device_of(network)
        self.what = metric
        self._cache = cache or EvaluationCache()
        self._originals = PartedStatistics()
        self._drawn = defaultdict(PartedStatistics)

    def process(
        self, shown: Sequence[OriginalPicture], drawn: Mapping[str, Sequence[ReconstructedPicture]]
    ) -> ReconstructionFeatures:
        of_drawn = {
            name: self._extract_features([one.output.picture for one in several]) for name, several in drawn.items()
        }
        return ReconstructionFeatures(self._recall([one.prepared for one in shown]), of_drawn)

    def _recall(self, originals: Sequence[Picture]) -> Tensor:
        """The pooled features of a batch of originals."""
        shapes = [list(picture.shape) for picture in originals]
        pixels = b"".join(picture.tobytes() for picture in originals)
        key = key_of(self.network, pixels, ["pooled", str(self._device.type), shapes])

        def ask(_: list[int]) -> list[str]:
            return [base64.b64encode(self._extract_features(originals)[0].float().numpy().tobytes()).decode()]

        (answer,) = self._cache.get_or_compute([key], ask)
        numbers = np.frombuffer(base64.b64decode(answer), dtype=np.float32)
        return torch.from_numpy(numbers.reshape(len(originals), -1).copy())

    def _extract_features(self, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        found = extract_features(self.network, pictures, self._device)
        return found.pooled, found.logits

    def add(self, found: ReconstructionFeatures, groups: Sequence[int]) -> None:
        part_of = torch.tensor(groups) % FRECHET_PARTS  # a group stays together
        self._originals.add(found.originals, part_of)
        for name, (pooled, _) in found.drawn.items():
            self._drawn[name].add(pooled, part_of)

    def results(self, name: str) -> dict[str, Measurement]:
        ours, theirs = self._originals, self._drawn[name]
        whole = ours.whole()
        if whole.count < 2:
            return {}
        parts = [frechet_distance(a, b) for a, b in zip(ours.parts, theirs.parts, strict=True) if a.count >= 2]
        return {
            self.metric: Measurement(
                value=frechet_distance(whole, theirs.whole()),
                parts=parts,
                network=self.network.name,
                sha256=self.network.sha256,
                note=f"parts: {len(parts)} of whole groups; biased upwards by few pictures",
                count=whole.count,
            )
        }


class InceptionMeter(FrechetMeter):
    """FID, and the inception score of the reconstructions: the rFID and rIS of papers on tokenizers.

    Args:
        network: Inception-v3.
        total: how many pictures the set has, which decides on the parts of the inception score.
        cache: as for `FrechetMeter`.
    """

    def __init__(self, network: FeatureExtractor, total: int, cache: EvaluationCache | None = None) -> None:
        super().__init__(network, "fid", cache)
        self._classes = defaultdict(partial(ClassScores, network, total))

    def add(self, found: ReconstructionFeatures, groups: Sequence[int]) -> None:
        super().add(found, groups)
        for name, (_, logits) in found.drawn.items():
            self._classes[name].add(logits)

    def results(self, name: str) -> dict[str, Measurement]:
        return super().results(name) | {"inception_score": self._classes[name].measure()}


@dataclass(frozen=True)
class BatchFeatures:
    """What a network says of a batch, in fp32.

    Attributes:
        size: height and width of its pictures.
        path: of the first one.
        pooled: features, for Fréchet distance, precision and recall.
        spatial: features.
        logits: of its classes.
    """

    size: tuple[int, int]
    path: str
    pooled: Tensor
    spatial: Tensor
    logits: Tensor


class SetMeter(GeneratedMeter[BatchFeatures]):
    """Fréchet distances, class score, precision and recall through the eyes of one network.

    Of the pictures only features are kept: for Fréchet distances reduced to their moments, for precision and recall one
    vector a picture in fp32.

    Args:
        network: looks at them.
        kinds: of the metrics that are wanted, by their names: `frechet`, `spatial`, `classes`, `precision`, `recall`.
        total: how many pictures there are.
        given: mean and covariance of the reference, `frechet` or `spatial`, where somebody has computed them.
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
        """The metrics for which it has to see the pictures of a reference."""
        return tuple(name for name, kind in self._kinds.items() if kind not in {"classes", *self._given})

    @property
    def by_statistics(self) -> tuple[str, ...]:
        """Those for which somebody's statistics stand for these pictures."""
        return tuple(name for name, kind in self._kinds.items() if kind in self._given)

    def process(self, batch: Sequence[Generated]) -> BatchFeatures:
        return self.extract_features([one.picture for one in batch], batch[0].sample.path)

    def extract_features(self, pictures: Sequence[Picture], path: str) -> BatchFeatures:
        """What the network says of pictures of one size; `path` is the first one's."""
        found = extract_features(self.network, pictures, self._device)
        return BatchFeatures(pictures[0].shape[:2], path, found.pooled, found.spatial, found.logits)

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
        """More pictures of the reference, of the same size as the generated ones.

        Raises:
            ConfigError: of another size.
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
            of = f"{reference.count} reference pictures"
        else:
            of = "given statistics of the reference"
        parts, whole = self._moments[kind].parts, self._moments[kind].whole()
        if whole.count < 2:
            raise ValueError(f"needs two pictures or more, got {whole.count}")
        if isinstance(reference, Moments) and len(reference.mean) != whole.dim:
            raise ValueError(
                f"the given statistics are of {len(reference.mean)} features, the pictures' of {whole.dim}"
            )
        spread = [frechet_distance(part, reference) for part in parts if part.count >= 2]
        note = f"against {of}; parts: quarters of the pictures; biased upwards by few pictures"
        return frechet_distance(whole, reference), spread, whole.count, note

    def _precision_and_recall(self, kind: str) -> tuple[float, list[float], int, str]:
        """The quarters of the pictures against the whole reference, as for Fréchet distances."""
        if not self._reference_features:
            raise ValueError("needs the pictures of a reference, not only its statistics")
        # Kept for the whole call only: the largest thing here.
        ours, theirs = (torch.cat(found).to(self._device) for found in (self._features, self._reference_features))
        balls, whose = (theirs, "the reference") if kind == "precision" else (ours, "the set")
        if len(balls) <= NEIGHBOURS:
            raise ValueError(f"{kind} needs {NEIGHBOURS + 1} pictures or more in {whose}, got {len(balls)}")
        quarter_of = torch.tensor(self._quarter_of, device=self._device)
        note = f"k = {NEIGHBOURS}; against {len(theirs)} reference pictures; parts: quarters of the pictures"
        if kind == "precision":
            inside = covered(ours, theirs, neighbour_radii(theirs)).float()
            parts = [float(inside[quarter_of == part].mean()) for part in quarter_of.unique()]
            return float(inside.mean()), parts, len(ours), note
        parts = []
        for part in range(FRECHET_PARTS):
            some = ours[quarter_of == part]
            if len(some) > NEIGHBOURS:
                parts.append(float(covered(theirs, some, neighbour_radii(some)).float().mean()))
        return float(covered(theirs, ours, neighbour_radii(ours)).float().mean()), parts, len(ours), note
