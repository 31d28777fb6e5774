"""Meters: each looks at the originals of a batch once, then at every contestant's reconstructions of them."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imtok.data.pictures import Picture, from_uint8
from imtok.data.sample import Sample
from imtok.evaluation.contestants import Reconstruction
from imtok.evaluation.metrics import (
    FeatureStatistics,
    codebook_perplexity,
    codebook_usage,
    frechet_distance,
    psnr,
    shared_information,
    ssim,
)
from imtok.evaluation.set_metrics import CLASS_PARTS, ClassScore
from imtok.evaluation.statistics import Items
from imtok.losses.reconstruction import feature_distances
from imtok.pretrained import DescribingNetwork, Description, FeatureNetwork

FRECHET_PARTS = 4
"""Disjoint parts of the set whose distances show how much the number varies: resampling would bias it."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One original.

    Attributes:
        row: its place in the set.
        sample: with its annotations, in the pixels of `original`.
        group: what a bootstrap draws together.
        original: at its own size.
        prepared: as it enters the tokenizer; the same unless the evaluation has a size.
        content: of that, what is no padding.
    """

    row: int
    sample: Sample
    group: int
    original: Picture
    prepared: Picture
    content: Picture

    @property
    def place(self) -> dict[str, Any]:
        """What tells it from others in `items.jsonl`."""
        return {"row": self.row, "path": self.sample.path}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Its reconstruction by one contestant: what came out, of that what is no padding, and at the original's size."""

    made: Reconstruction
    content: Picture
    restored: Picture


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A metric of one contestant on one set.

    Attributes:
        items: one number a picture, word or face; or None, where the set as a whole has one number.
        value: that number.
        network: name of the network behind it.
        sha256: of that network's weights.
        note: what else one has to know to repeat it.
        parts: the same number on disjoint parts of the set.
        count: pictures behind that number.
    """

    items: Items | None = None
    value: float | None = None
    network: str | None = None
    sha256: str | None = None
    note: str | None = None
    parts: list[float] = field(default_factory=list)
    count: int | None = None


class Meter(ABC):
    """One way of looking at reconstructions."""

    @abstractmethod
    def see(self, shown: Sequence[Shown]) -> None:
        """The originals of the next batch."""

    @abstractmethod
    def compare(self, name: str, drawn: Sequence[Drawn]) -> None:
        """One contestant's reconstructions of that batch."""

    @abstractmethod
    def results(self, name: str) -> dict[str, Measurement]:
        """The contestant's numbers, by the metric's name; empty when there was nothing to measure."""

    def items(self) -> list[dict[str, Any]]:
        """What was looked at one by one in this batch, with all contestants' outcomes: lines of `items.jsonl`."""
        return []


class PixelMeter(Meter):
    """PSNR and SSIM of each picture, as it enters and leaves the tokenizer."""

    def __init__(self) -> None:
        self._groups: list[int] = []
        self._values: dict[str, dict[str, list[float]]] = defaultdict(lambda: {"psnr": [], "ssim": []})

    def see(self, shown: Sequence[Shown]) -> None:
        self._batch = [_pixels(one.content) for one in shown]
        self._places = [one.place for one in shown]
        self._groups += [one.group for one in shown]

    def compare(self, name: str, drawn: Sequence[Drawn]) -> None:
        for before, one in zip(self._batch, drawn, strict=True):
            after = _pixels(one.content)
            self._values[name]["psnr"].append(psnr(before, after).item())
            self._values[name]["ssim"].append(ssim(before, after).item())

    def results(self, name: str) -> dict[str, Measurement]:
        note = "uint8, data range 255"
        return {
            metric: Measurement(items=make_items(values, self._groups), note=note)
            for metric, values in self._values[name].items()
        }

    def items(self) -> list[dict[str, Any]]:
        last = {name: values["psnr"][-len(self._places) :] for name, values in self._values.items()}
        return [
            {"kind": "picture", **place, "psnr": {name: _finite(found[index]) for name, found in last.items()}}
            for index, place in enumerate(self._places)
        ]


class PerceptualMeter(Meter):
    """Unweighted distance of VGG16 features of each picture."""

    def __init__(self, network: FeatureNetwork) -> None:
        self.network = network
        self._groups: list[int] = []
        self._values: dict[str, list[float]] = defaultdict(list)

    def see(self, shown: Sequence[Shown]) -> None:
        self._batch = self._maps([one.prepared for one in shown])
        self._groups += [one.group for one in shown]

    def compare(self, name: str, drawn: Sequence[Drawn]) -> None:
        maps = self._maps([one.made.picture for one in drawn])
        self._values[name] += feature_distances(self._batch, maps).tolist()

    @torch.no_grad()
    def _maps(self, pictures: Sequence[Picture]) -> list[Tensor]:
        return self.network(from_uint8(np.stack(pictures)))

    def results(self, name: str) -> dict[str, Measurement]:
        items = make_items(self._values[name], self._groups)
        return {"vgg16_distance": Measurement(items=items, network=self.network.name, sha256=self.network.sha256)}


class FrechetMeter(Meter):
    """Fréchet distance between the features of all originals and of all reconstructions.

    Args:
        network: whose pooled features are compared.
        metric: the distance's name.
    """

    def __init__(self, network: DescribingNetwork, metric: str = "fd_efficientnet_lite0") -> None:
        self.network, self.metric = network, metric
        self._originals = _parts()
        self._drawn = defaultdict(_parts)

    def see(self, shown: Sequence[Shown]) -> None:
        self._groups = torch.tensor([one.group for one in shown])
        self._add(self._originals, [one.prepared for one in shown])

    def compare(self, name: str, drawn: Sequence[Drawn]) -> None:
        self._add(self._drawn[name], [one.made.picture for one in drawn])

    @torch.no_grad()
    def _add(self, parts: list[FeatureStatistics], pictures: list[Picture]) -> Description:
        """The whole set comes last, its disjoint parts first; a group stays together."""
        found = self.network.describe(from_uint8(np.stack(pictures)))
        parts[-1].add(found.pooled)
        for part in range(FRECHET_PARTS):
            parts[part].add(found.pooled[self._groups % FRECHET_PARTS == part])
        return found

    def results(self, name: str) -> dict[str, Measurement]:
        pairs = list(zip(self._originals, self._drawn[name], strict=True))
        if pairs[-1][0].count < 2:
            return {}
        *parts, whole = [frechet_distance(a, b) if a.count >= 2 else None for a, b in pairs]
        return {
            self.metric: Measurement(
                value=whole,
                parts=[part for part in parts if part is not None],
                network=self.network.name,
                sha256=self.network.sha256,
                note=f"{pairs[-1][0].count} pictures; biased by the count",
            )
        }


class InceptionMeter(FrechetMeter):
    """FID, and the inception score of the reconstructions: the rFID and rIS of papers on tokenizers."""

    def __init__(self, network: DescribingNetwork) -> None:
        super().__init__(network, "fid")
        self._classes = defaultdict(lambda: [ClassScore() for _ in range(CLASS_PARTS)])

    def compare(self, name: str, drawn: Sequence[Drawn]) -> None:
        found = self._add(self._drawn[name], [one.made.picture for one in drawn])
        for part, score in enumerate(self._classes[name]):
            score.add(found.logits[self._groups % CLASS_PARTS == part])

    def results(self, name: str) -> dict[str, Measurement]:
        parts = [score.value() for score in self._classes[name] if score.count]
        measured = Measurement(
            value=float(np.mean(parts)),
            parts=parts,
            network=self.network.name,
            sha256=self.network.sha256,
            note=f"mean of {len(parts)} disjoint parts; biased by the count",
        )
        return super().results(name) | {"inception_score": measured}


def _parts() -> list[FeatureStatistics]:
    return [FeatureStatistics() for _ in range(FRECHET_PARTS + 1)]


class CodeMeter(Meter):
    """Rate of each picture, and how much of each codebook the set uses.

    Args:
        codebook_sizes: of each contestant.
        rate_notes: what one has to know of its rate.
    """

    def __init__(self, codebook_sizes: Mapping[str, tuple[int, ...]], rate_notes: Mapping[str, str | None]) -> None:
        self._sizes, self._rate_notes = codebook_sizes, rate_notes
        self._groups: list[int] = []
        self._rates: dict[str, list[float]] = defaultdict(list)
        self._told: dict[str, list[float]] = defaultdict(list)
        self._joint_rates: dict[str, list[float]] = defaultdict(list)
        self._codes: dict[str, list[Tensor]] = defaultdict(list)

    def see(self, shown: Sequence[Shown]) -> None:
        self._groups += [one.group for one in shown]

    def compare(self, name: str, drawn: Sequence[Drawn]) -> None:
        for one in drawn:
            if one.made.bits_per_pixel is not None:
                self._rates[name].append(one.made.bits_per_pixel)
            if one.made.caption_bits is not None:
                self._told[name].append(one.made.caption_bits)
            if one.made.bits_per_pixel is not None and one.made.caption_bits is not None:
                beside = one.made.caption_bits / one.made.picture[..., 0].size
                self._joint_rates[name].append(one.made.bits_per_pixel + beside)
            if one.made.codes is not None:
                self._codes[name].append(one.made.codes.int())  # half the memory of long

    def results(self, name: str) -> dict[str, Measurement]:
        found: dict[str, Measurement] = {}
        if self._rates[name]:
            found["bits_per_pixel"] = Measurement(
                items=make_items(self._rates[name], self._groups), note=self._rate_notes[name]
            )
        if self._told[name]:
            note = "8 bits a byte of the caption, or log2 of the classes; not in bits_per_pixel"
            found["caption_bits"] = Measurement(items=make_items(self._told[name], self._groups), note=note)
        if self._joint_rates[name]:
            found["bits_per_pixel_with_caption"] = Measurement(
                items=make_items(self._joint_rates[name], self._groups), note="bits_per_pixel and caption_bits together"
            )
        if self._codes[name]:
            codes, sizes = torch.cat(self._codes[name])[None], self._sizes[name]
            several = len(sizes) > 1
            for metric, values in (
                ("codebook_usage", codebook_usage(codes, sizes)),
                ("codebook_perplexity", codebook_perplexity(codes, sizes)),
            ):
                for index, value in enumerate(values):
                    note = f"{codes.shape[1]} tokens, {sizes[index]} codes"
                    found[f"{metric}_{index}" if several else metric] = Measurement(value=value, note=note)
            if several:
                value, chance = shared_information(codes)
                note = f"bits beyond the {chance:.3f} of shuffled codes; mean over pairs of codebooks"
                found["shared_information"] = Measurement(value=value, note=note)
        return found


def make_items(
    values: Sequence[float],
    groups: Sequence[int],
    buckets: Sequence[int] | None = None,
    bucket_names: tuple[str, ...] = ("",),
) -> Items:
    """Items from plain lists; without buckets all lie in one."""
    return Items(
        values=np.asarray(values, dtype=np.float64),
        groups=np.asarray(groups, dtype=np.int64),
        buckets=np.zeros(len(values), dtype=np.int64) if buckets is None else np.asarray(buckets, dtype=np.int64),
        bucket_names=bucket_names,
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _pixels(picture: Picture) -> Tensor:
    return torch.from_numpy(np.array(picture)).movedim(-1, 0)[None]
