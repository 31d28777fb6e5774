"""Meters of generated pictures: each looks at every picture once, and some at the pictures of a reference too."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from imtok.config import ConfigError
from imtok.data.annotate import Annotator
from imtok.data.pictures import Picture, from_uint8
from imtok.data.sample import Sample
from imtok.evaluation.asked import Asked
from imtok.evaluation.faces import FaceJudge, embed_faces
from imtok.evaluation.meters import FRECHET_PARTS, Measurement, make_items
from imtok.evaluation.metrics import FeatureStatistics, Moments, frechet_distance
from imtok.evaluation.set_metrics import CLASS_PARTS, NEIGHBOURS, ClassScore, covered, disjoint_parts, neighbour_radii
from imtok.pretrained.clip import CLIP
from imtok.pretrained.networks import DescribingNetwork

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One generated picture.

    Attributes:
        sample: its file.
        picture: its pixels.
        asked: what it should show.
    """

    sample: Sample
    picture: Picture
    asked: Asked


class GeneratedMeter(ABC, Generic[Found]):
    """One way of looking at generated pictures.

    Looking is the work and changes nothing, so anybody can do it; what was found is added up elsewhere.

    Attributes:
        metrics: what it measures.
    """

    metrics: tuple[str, ...]

    @abstractmethod
    def look(self, batch: Sequence[Generated]) -> Found:
        """Pictures of one size.

        Raises:
            InputError: it cannot go on; one line.
        """

    @abstractmethod
    def add(self, found: Found, groups: Sequence[int]) -> None:
        """What was found on the next batch, and the prompt that each of its pictures shares with others.

        Raises:
            InputError: it cannot go on; one line.
        """

    @abstractmethod
    def measure(self, metric: str) -> Measurement:
        """What it has found.

        Raises:
            InputError: there is nothing to measure the metric on; one line.
        """

    def items(self) -> list[dict[str, Any]]:
        """What was looked at one by one: lines of `items.jsonl`."""
        return []


@dataclass(frozen=True)
class Features:
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


class SetMeter(GeneratedMeter[Features]):
    """Fréchet distances, class score, precision and recall through the eyes of one network.

    Of the pictures only features are kept: for Fréchet distances reduced to their moments, for precision and recall one
    vector a picture in fp32.

    Args:
        network: looks at them.
        names: of the metrics that are wanted: `frechet`, `spatial`, `classes`, `precision` or `recall` to the name.
        total: how many pictures there are.
        given: mean and covariance of the reference, `frechet` or `spatial`, where somebody has computed them.
    """

    def __init__(
        self,
        network: DescribingNetwork,
        names: Mapping[str, str],
        total: int,
        given: Mapping[str, Moments] | None = None,
    ) -> None:
        self.network, self._kinds = network, {name: kind for kind, name in names.items()}
        self.metrics = tuple(self._kinds)
        self._device = next(network.parameters()).device
        self._quarters, self._tenths = disjoint_parts(total, FRECHET_PARTS), disjoint_parts(total, CLASS_PARTS)
        self._given = given or {}
        self._moments = {kind: [FeatureStatistics() for _ in range(FRECHET_PARTS + 1)] for kind in _FRECHET}
        self._reference = {kind: FeatureStatistics() for kind in _FRECHET}
        self._classes = [ClassScore() for _ in range(CLASS_PARTS)]
        self._features: list[Tensor] = []
        self._quarter_of: list[int] = []
        self._reference_features: list[Tensor] = []
        self._size: tuple[int, int] | None = None
        self._seen = 0

    @property
    def compared(self) -> tuple[str, ...]:
        """The metrics for which it has to see the pictures of a reference."""
        return tuple(name for name, kind in self._kinds.items() if kind not in {"classes", *self._given})

    def look(self, batch: Sequence[Generated]) -> Features:
        return self.describe([one.picture for one in batch], batch[0].sample.path)

    @torch.no_grad()
    def describe(self, pictures: Sequence[Picture], path: str) -> Features:
        """What the network says of pictures of one size; `path` is the first one's."""
        found = self.network.describe(from_uint8(np.stack(pictures)).to(self._device))
        kinds = (features.float().cpu() for features in (found.pooled, found.spatial, found.logits))
        return Features(pictures[0].shape[:2], path, *kinds)

    def add(self, found: Features, groups: Sequence[int]) -> None:
        self._check_size(found)
        rows = slice(self._seen, self._seen + len(found.pooled))
        self._seen = rows.stop
        for kind, features in (("frechet", found.pooled), ("spatial", found.spatial)):
            if kind in self._kinds.values():
                *parts, whole = self._moments[kind]
                whole.add(features)
                for part, statistics in enumerate(parts):
                    statistics.add(features[self._quarters[rows] == part])
        for part, score in enumerate(self._classes):
            score.add(found.logits[self._tenths[rows] == part])
        if self._keeps_features:
            self._features.append(found.pooled)
            self._quarter_of += self._quarters[rows].tolist()

    def add_reference(self, found: Features) -> None:
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
            value, parts, count, note = {
                "frechet": self._frechet,
                "spatial": self._frechet,
                "classes": self._class_score,
                "precision": self._precision_and_recall,
                "recall": self._precision_and_recall,
            }[kind](kind)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        name, sha256 = self.network.name, self.network.sha256
        return Measurement(value=value, parts=parts, count=count, note=note, network=name, sha256=sha256)

    @property
    def _keeps_features(self) -> bool:
        return bool({"precision", "recall"} & set(self._kinds.values()))

    def _check_size(self, found: Features) -> None:
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
            if reference.count < 2:
                raise ValueError(f"the reference needs two pictures or more, got {reference.count}")
            of = f"{reference.count} reference pictures"
        else:
            of = "given statistics of the reference"
        *parts, whole = self._moments[kind]
        if whole.count < 2:
            raise ValueError(f"needs two pictures or more, got {whole.count}")
        if isinstance(reference, Moments) and len(reference.mean) != whole.dim:
            raise ValueError(
                f"the given statistics are of {len(reference.mean)} features, the pictures' of {whole.dim}"
            )
        spread = [frechet_distance(part, reference) for part in parts if part.count >= 2]
        note = f"against {of}; parts: quarters of the pictures; biased upwards by few pictures"
        return frechet_distance(whole, reference), spread, whole.count, note

    def _class_score(self, kind: str) -> tuple[float, list[float], int, str]:
        parts = [score.value() for score in self._classes if score.count]
        if not parts:
            raise ValueError("no pictures to score")
        note = f"mean of {len(parts)} disjoint parts, shuffled as torch-fidelity does; biased downwards by few pictures"
        return float(np.mean(parts)), parts, sum(score.count for score in self._classes), note

    def _precision_and_recall(self, kind: str) -> tuple[float, list[float], int, str]:
        """The quarters of the pictures against the whole reference, as for Fréchet distances."""
        if not self._reference_features:
            raise ValueError("needs the pictures of a reference, not only its statistics")
        # Kept for the whole call only: the largest thing here.
        ours, theirs = (torch.cat(found).to(self._device) for found in (self._features, self._reference_features))
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


_FRECHET = ("frechet", "spatial")


class ClipMeter(GeneratedMeter[list[tuple[float, bool] | None]]):
    """CLIP score: 100 times the cosine between a picture and its prompt, negative ones as 0 (Hessel et al. 2021).

    Without Hessel's factor of 2.5, as text-to-image papers report it.
    """

    metrics = ("clip_score",)

    def __init__(self, network: CLIP) -> None:
        self.network = network
        self._scores: list[float] = []
        self._groups: list[int] = []
        self._without, self._cut = 0, 0

    @torch.no_grad()
    def look(self, batch: Sequence[Generated]) -> list[tuple[float, bool] | None]:
        """The score of each picture, and whether its prompt was cut; None without a prompt."""
        asked = [(one.picture, one.asked.prompt) for one in batch if one.asked.prompt]
        if not asked:
            return [None] * len(batch)
        pictures, prompts = zip(*asked, strict=True)
        scores = (100 * self.network.similarity(pictures, prompts).clamp(min=0)).tolist()
        found = iter(zip(scores, map(self.network.is_cut, prompts), strict=True))
        return [next(found) if one.asked.prompt else None for one in batch]

    def add(self, found: list[tuple[float, bool] | None], groups: Sequence[int]) -> None:
        scored = [(*one, group) for one, group in zip(found, groups, strict=True) if one is not None]
        self._scores += [score for score, _, _ in scored]
        self._groups += [group for _, _, group in scored]
        self._cut += sum(cut for _, cut, _ in scored)
        self._without += len(found) - len(scored)

    def measure(self, metric: str) -> Measurement:
        if not self._scores:
            raise ConfigError("no picture has a prompt; give --prompts TABLE with columns file and prompt")
        note = f"{self.network.size}; {self._without} pictures without a prompt, {self._cut} prompts cut"
        items = make_items(self._scores, self._groups)
        return Measurement(items=items, network=self.network.name, sha256=self.network.sha256, note=note)


class FaceNormMeter(GeneratedMeter[list[list[dict[str, Any]]]]):
    """Length of the vectors of all faces that are detected (InsightTok, F.2.1, after MagFace, Meng et al. 2021).

    The mean is over faces; how InsightTok weighs pictures with many of them is not stated.

    Args:
        detector: of the role `face_detector`.
        network: embeds faces without normalizing; only MagFace's was trained so that the length is a quality.
        metric: the number's name.
    """

    def __init__(self, detector: Any, network: FaceJudge, metric: str) -> None:
        self.metrics = (metric,)
        self.detector, self.network = detector, network
        self._annotator = Annotator(face_detector=detector)
        self._norms: list[float] = []
        self._groups: list[int] = []
        self._pictures, self._with_faces = 0, 0
        self._items: list[dict[str, Any]] = []

    def look(self, batch: Sequence[Generated]) -> list[list[dict[str, Any]]]:
        """The faces of each picture, as lines of `items.jsonl`."""
        found = []
        for one in batch:
            faces = self._annotator.annotate(one.sample, one.picture).faces or []
            norms = embed_faces(self.network, one.picture, faces).norm(dim=1).tolist()
            found.append(
                [
                    {"kind": "face", "path": one.sample.path, "box": list(face.box), self.metrics[0]: norm}
                    for face, norm in zip(faces, norms, strict=True)
                ]
            )
        return found

    def add(self, found: list[list[dict[str, Any]]], groups: Sequence[int]) -> None:
        for faces, group in zip(found, groups, strict=True):
            self._norms += [face[self.metrics[0]] for face in faces]
            self._groups += [group] * len(faces)
            self._items += faces
            self._pictures += 1
            self._with_faces += bool(faces)

    def measure(self, metric: str) -> Measurement:
        if not self._norms:
            raise ConfigError(f"no face was found in {self._pictures} pictures")
        networks = (self.detector, self.network)
        return Measurement(
            items=make_items(self._norms, self._groups),
            network=" + ".join(network.name for network in networks),
            sha256=" + ".join(network.sha256 for network in networks),
            note=f"{len(self._norms)} faces in {self._with_faces} of {self._pictures} pictures",
        )

    def items(self) -> list[dict[str, Any]]:
        return self._items
