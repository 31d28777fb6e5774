"""Meters of generated pictures: each processes every picture once, and some also the pictures of a reference."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Generic, TypeVar

import torch

from imtok.config import ConfigError
from imtok.data.annotate import Annotator
from imtok.data.pictures import Picture
from imtok.data.sample import Sample
from imtok.evaluation.faces import FaceJudge, embed_faces
from imtok.evaluation.meters import Measurement, check_finite, make_items
from imtok.evaluation.prompt_info import PromptInfo
from imtok.pretrained.clip import CLIP

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One generated picture.

    Attributes:
        sample: its sample, with the encoded file and its path.
        picture: its pixels.
        prompt_info: its prompt, the text that it should show, and the run that generated it, as far as known.
    """

    sample: Sample
    picture: Picture
    prompt_info: PromptInfo


class GeneratedMeter(ABC, Generic[Found]):
    """Computes one group of metrics of generated pictures.

    `process` does the expensive work and changes no state, so any process can call it; its findings are accumulated by
    `add`.

    Attributes:
        metrics: names of the metrics that it measures.
    """

    metrics: tuple[str, ...]

    @abstractmethod
    def process(self, batch: Sequence[Generated]) -> Found:
        """Measure a batch of pictures of one size.

        Raises:
            InputError: the meter cannot continue (one-line message).
        """

    @abstractmethod
    def add(self, found: Found, groups: Sequence[int]) -> None:
        """Add the findings on the next batch.

        Args:
            found: findings that `process` returned.
            groups: group of each picture of the batch, as defined by `PromptInfo.group`; the bootstrap resamples whole
                groups.

        Raises:
            InputError: the meter cannot continue (one-line message).
        """

    @abstractmethod
    def measure(self, metric: str) -> Measurement:
        """Return the metric over all pictures added so far.

        Raises:
            InputError: there is nothing to measure the metric on (one-line message).
        """

    def items(self) -> list[dict[str, Any]]:
        """Return the lines of `items.jsonl`: single pictures, texts or faces with their outcomes."""
        return []


class ClipMeter(GeneratedMeter[list[tuple[float, bool] | None]]):
    """CLIP score: 100 times the cosine of picture and prompt, with negative values set to 0 (Hessel et al. 2021).

    As in text-to-image papers, without Hessel's factor of 2.5.

    Args:
        network: CLIP that embeds pictures and prompts.
    """

    metrics = ("clip_score",)

    def __init__(self, network: CLIP) -> None:
        self.network = network
        self._scores: list[float] = []
        self._groups: list[int] = []
        self._without_prompt, self._truncated = 0, 0

    @torch.no_grad()
    def process(self, batch: Sequence[Generated]) -> list[tuple[float, bool] | None]:
        """Return the score of each picture and whether its prompt was truncated; None for pictures without a prompt."""
        prompted = [(one.picture, one.prompt_info.prompt) for one in batch if one.prompt_info.prompt]
        if not prompted:
            return [None] * len(batch)
        pictures, prompts = zip(*prompted, strict=True)
        scores = (
            100 * check_finite(self.network.similarity(pictures, prompts), self.network.name).clamp(min=0)
        ).tolist()
        found = iter(zip(scores, map(self.network.is_cut, prompts), strict=True))
        return [next(found) if one.prompt_info.prompt else None for one in batch]

    def add(self, found: list[tuple[float, bool] | None], groups: Sequence[int]) -> None:
        scored = [(*one, group) for one, group in zip(found, groups, strict=True) if one is not None]
        self._scores += [score for score, _, _ in scored]
        self._groups += [group for _, _, group in scored]
        self._truncated += sum(truncated for _, truncated, _ in scored)
        self._without_prompt += len(found) - len(scored)

    def measure(self, metric: str) -> Measurement:
        if not self._scores:
            raise ConfigError(
                "no picture has a prompt: neither does --prompts TABLE (columns file and prompt) name one of these "
                "pictures, nor is one noted in their files"
            )
        note = f"{self.network.size}; {self._without_prompt} pictures without a prompt, {self._truncated} prompts cut"
        items = make_items(self._scores, self._groups)
        return Measurement(items=items, network=self.network.name, sha256=self.network.sha256, note=note)


class FaceNormMeter(GeneratedMeter[list[list[dict[str, Any]]]]):
    """Mean norm of the embeddings of all detected faces (InsightTok, F.2.1, after MagFace, Meng et al. 2021).

    The mean is over faces. InsightTok's "averaged over 300 generated images" can also be read as the mean of each
    picture's mean; the note reports that value.

    Args:
        detector: network of the role `face_detector`.
        network: face network with unnormalized embeddings; only MagFace was trained to make the norm a quality score.
        metric: name of the metric.
    """

    def __init__(self, detector: Any, network: FaceJudge, metric: str) -> None:
        self.metrics = (metric,)
        self.detector, self.network = detector, network
        self._annotator = Annotator(face_detector=detector)
        self._norms: list[float] = []
        self._groups: list[int] = []
        self._pictures = 0
        self._means: list[float] = []  # of each picture with faces
        self._items: list[dict[str, Any]] = []

    def process(self, batch: Sequence[Generated]) -> list[list[dict[str, Any]]]:
        """Return the faces of each picture as lines of `items.jsonl`."""
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
            norms = [face[self.metrics[0]] for face in faces]
            self._norms += norms
            self._groups += [group] * len(faces)
            self._items += faces
            self._pictures += 1
            self._means += [fmean(norms)] if norms else []

    def measure(self, metric: str) -> Measurement:
        if not self._norms:
            raise ConfigError(f"no face was found in {self._pictures} pictures")
        networks = (self.detector, self.network)
        by_picture = f"the mean of their means is {fmean(self._means):.4g}"
        return Measurement(
            items=make_items(self._norms, self._groups),
            network=" + ".join(network.name for network in networks),
            sha256=" + ".join(network.sha256 for network in networks),
            note=f"{len(self._norms)} faces in {len(self._means)} of {self._pictures} pictures; {by_picture}",
        )

    def items(self) -> list[dict[str, Any]]:
        return self._items
