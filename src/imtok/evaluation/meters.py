"""Meters: each compares the originals of a batch with their reconstructions and accumulates its metrics over a set."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from imtok.config import ConfigError
from imtok.data.pictures import Picture, from_uint8
from imtok.data.sample import Sample
from imtok.evaluation.metrics import codebook_perplexity, codebook_usage, psnr, shared_information, ssim
from imtok.evaluation.reconstructors import Reconstruction
from imtok.evaluation.statistics import MIN_ITEMS, Items
from imtok.losses.reconstruction import feature_distances
from imtok.pretrained import FeatureNetwork

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class OriginalPicture:
    """One original.

    Attributes:
        row: its index in the set.
        sample: its sample, with annotations in the pixel coordinates of `original`.
        original: the picture at its own size, or the cropped square that replaces it (`CentreCrop`).
        prepared: the picture as it enters the tokenizer; equal to `original` unless it is padded (`PadToSquare`).
        content: the part of `prepared` that is not padding.
    """

    row: int
    sample: Sample
    original: Picture
    prepared: Picture
    content: Picture

    @property
    def place(self) -> dict[str, Any]:
        """The keys that identify the picture in `items.jsonl`."""
        return {"row": self.row, "path": self.sample.path}


@dataclass(frozen=True, kw_only=True)
class ReconstructedPicture:
    """The reconstruction of an original by one reconstructor.

    Attributes:
        output: the reconstruction at the size at which pictures enter the tokenizer.
        content: the part of it that is not padding.
        restored: the reconstruction at the original's size.
    """

    output: Reconstruction
    content: Picture
    restored: Picture


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A metric of one reconstructor on one set.

    Attributes:
        items: one number per picture, word or face; None for a metric of the set as a whole.
        value: the number of the set as a whole, if `items` is None.
        network: name of the network behind the metric; several names are joined by " + ".
        sha256: hash of that network's weights; several are joined by " + ".
        note: further information needed to reproduce the metric.
        parts: the same metric on disjoint parts of the set.
        count: number of pictures behind `value`.
    """

    items: Items | None = None
    value: float | None = None
    network: str | None = None
    sha256: str | None = None
    note: str | None = None
    parts: list[float] = field(default_factory=list)
    count: int | None = None


class Meter(ABC, Generic[Found]):
    """Computes one group of metrics of reconstructions.

    `process` does the expensive work and changes no state, so any process can call it; its findings are accumulated by
    `add`.

    Attributes:
        what: what it measures, for messages.
    """

    what: str

    @abstractmethod
    def process(
        self, originals: Sequence[OriginalPicture], reconstructions: Mapping[str, Sequence[ReconstructedPicture]]
    ) -> Found:
        """Measure a batch of originals and every reconstructor's reconstructions of them."""

    @abstractmethod
    def add(self, found: Found, groups: Sequence[int]) -> None:
        """Add the findings on the next batch.

        Args:
            found: findings that `process` returned.
            groups: group of each picture of the batch; the bootstrap resamples whole groups.
        """

    @abstractmethod
    def results(self, name: str) -> dict[str, Measurement]:
        """Return a reconstructor's measurements by metric name; empty if there was nothing to measure."""

    def items(self, originals: Sequence[OriginalPicture], found: Found) -> list[dict[str, Any]]:
        """Return the lines of `items.jsonl` for a batch: single items with the outcomes of all reconstructors."""
        return []


class PixelMeter(Meter[dict[str, list[tuple[float, float]]]]):
    """PSNR and SSIM of each picture, at the size at which it enters and leaves the tokenizer."""

    what = "pixels"

    def __init__(self) -> None:
        self._groups: list[int] = []
        self._values: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def process(
        self, originals: Sequence[OriginalPicture], reconstructions: Mapping[str, Sequence[ReconstructedPicture]]
    ) -> dict[str, list[tuple[float, float]]]:
        original_tensors = [_to_tensor(picture.content) for picture in originals]
        found = {}
        for name, pictures in reconstructions.items():
            pairs = zip(original_tensors, (_to_tensor(picture.content) for picture in pictures), strict=True)
            found[name] = [(psnr(before, after).item(), ssim(before, after).item()) for before, after in pairs]
        return found

    def add(self, found: dict[str, list[tuple[float, float]]], groups: Sequence[int]) -> None:
        self._groups += groups
        for name, values in found.items():
            self._values[name] += values

    def results(self, name: str) -> dict[str, Measurement]:
        note = "uint8, data range 255"
        return {
            metric: Measurement(items=make_items(values, self._groups), note=note)
            for metric, values in zip(("psnr", "ssim"), zip(*self._values[name], strict=True), strict=True)
        }

    def items(
        self, originals: Sequence[OriginalPicture], found: dict[str, list[tuple[float, float]]]
    ) -> list[dict[str, Any]]:
        return [
            {
                "kind": "picture",
                **picture.place,
                "psnr": {name: _finite_or_none(values[index][0]) for name, values in found.items()},
            }
            for index, picture in enumerate(originals)
        ]


class PerceptualMeter(Meter[dict[str, list[float]]]):
    """Distance between the VGG16 features of each original and its reconstruction.

    Args:
        network: network whose features are compared, with its channel weights if it has any.
        metric: name of the distance.
    """

    def __init__(self, network: FeatureNetwork, metric: str = "vgg16_distance") -> None:
        self.network, self.metric, self._device = network, metric, device_of(network)
        self.what = metric
        self._groups: list[int] = []
        self._values: dict[str, list[float]] = defaultdict(list)

    @torch.no_grad()
    def process(
        self, originals: Sequence[OriginalPicture], reconstructions: Mapping[str, Sequence[ReconstructedPicture]]
    ) -> dict[str, list[float]]:
        original_maps = self._features([picture.prepared for picture in originals])
        weights = self.network.channel_weights()
        found = {}
        for name, pictures in reconstructions.items():
            distances = feature_distances(
                original_maps, self._features([picture.output.picture for picture in pictures]), weights
            )
            found[name] = check_finite(distances, self.network.name).tolist()
        return found

    def _features(self, pictures: Sequence[Picture]) -> list[Tensor]:
        return self.network(from_uint8(np.stack(pictures)).to(self._device))

    def add(self, found: dict[str, list[float]], groups: Sequence[int]) -> None:
        self._groups += groups
        for name, values in found.items():
            self._values[name] += values

    def results(self, name: str) -> dict[str, Measurement]:
        items = make_items(self._values[name], self._groups)
        return {self.metric: Measurement(items=items, network=self.network.name, sha256=self.network.sha256)}


@dataclass(frozen=True)
class Rate:
    """Rate of a picture: the tokens' bits per pixel, the caption's bits, their joint bits per pixel, and the codes.

    Attributes:
        missing_caption: whether the tokenizer is conditioned on captions, but the picture has none.
    """

    bits_per_pixel: float | None
    caption_bits: float | None
    joint: float | None
    codes: Tensor | None
    missing_caption: bool


class CodeMeter(Meter[dict[str, list[Rate]]]):
    """Rate of each picture, and usage of each codebook over the set.

    Args:
        codebook_sizes: codebook sizes of each reconstructor.
        rate_notes: note on the rate of each reconstructor, if any.
    """

    what = "rates"

    def __init__(self, codebook_sizes: Mapping[str, tuple[int, ...]], rate_notes: Mapping[str, str | None]) -> None:
        self._sizes, self._rate_notes = codebook_sizes, rate_notes
        self._groups: list[int] = []
        self._rates: dict[str, list[float]] = defaultdict(list)
        self._caption_bits: dict[str, list[float]] = defaultdict(list)
        self._missing_captions: dict[str, int] = defaultdict(int)
        self._joint_rates: dict[str, list[float]] = defaultdict(list)
        self._codes: dict[str, list[Tensor]] = defaultdict(list)

    def process(
        self, originals: Sequence[OriginalPicture], reconstructions: Mapping[str, Sequence[ReconstructedPicture]]
    ) -> dict[str, list[Rate]]:
        return {name: [_rate(picture.output) for picture in pictures] for name, pictures in reconstructions.items()}

    def add(self, found: dict[str, list[Rate]], groups: Sequence[int]) -> None:
        self._groups += groups
        for name, rates in found.items():
            self._rates[name] += [rate.bits_per_pixel for rate in rates if rate.bits_per_pixel is not None]
            self._caption_bits[name] += [rate.caption_bits for rate in rates if rate.caption_bits is not None]
            self._missing_captions[name] += sum(rate.missing_caption for rate in rates)
            self._joint_rates[name] += [rate.joint for rate in rates if rate.joint is not None]
            self._codes[name] += [rate.codes for rate in rates if rate.codes is not None]

    def missing_caption(self, name: str) -> int:
        """Return the number of pictures without a caption for a reconstructor that is conditioned on captions."""
        return self._missing_captions[name]

    def results(self, name: str) -> dict[str, Measurement]:
        found: dict[str, Measurement] = {}
        if self._rates[name]:
            found["bits_per_pixel"] = Measurement(
                items=make_items(self._rates[name], self._groups), note=self._rate_notes[name]
            )
        if self._caption_bits[name]:
            note = "8 bits a byte of the caption, or log2 of the classes; not in bits_per_pixel"
            found["caption_bits"] = Measurement(items=make_items(self._caption_bits[name], self._groups), note=note)
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
                    found[f"{metric}_{index}" if several else metric] = Measurement(
                        value=value, note=note, count=len(self._codes[name])
                    )
            if several:
                value, chance = shared_information(codes)
                note = f"bits beyond the {chance:.3f} of shuffled codes; mean over pairs of codebooks"
                found["shared_information"] = Measurement(value=value, note=note, count=len(self._codes[name]))
        return found


def _rate(reconstruction: Reconstruction) -> Rate:
    joint = None
    if reconstruction.bits_per_pixel is not None and reconstruction.caption_bits is not None:
        joint = reconstruction.bits_per_pixel + reconstruction.caption_bits / reconstruction.picture[..., 0].size
    codes = None if reconstruction.codes is None else reconstruction.codes.int()  # half the memory of long
    return Rate(
        reconstruction.bits_per_pixel,
        reconstruction.caption_bits,
        joint,
        codes,
        reconstruction.caption_bits is not None and not reconstruction.text,
    )


def make_items(
    values: Sequence[float],
    groups: Sequence[int],
    buckets: Sequence[int] | None = None,
    bucket_names: tuple[str, ...] = ("",),
    min_items: int = MIN_ITEMS,
) -> Items:
    """Convert plain lists to `Items`; without buckets, all items are in a single one."""
    return Items(
        values=np.asarray(values, dtype=np.float64),
        groups=np.asarray(groups, dtype=np.int64),
        buckets=np.zeros(len(values), dtype=np.int64) if buckets is None else np.asarray(buckets, dtype=np.int64),
        bucket_names=bucket_names,
        min_items=min_items,
    )


def check_finite(answer: Tensor, name: str) -> Tensor:
    """Return a network's output if it is finite.

    Args:
        answer: output of the network.
        name: name of the network.

    Raises:
        ConfigError: the output contains NaN or infinity.
    """
    if not answer.isfinite().all():
        raise ConfigError(f"{name}: outputs NaN or infinity; its weights may be broken")
    return answer


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's weights."""
    return next(network.parameters()).device


def _finite_or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _to_tensor(picture: Picture) -> Tensor:
    return torch.from_numpy(np.array(picture)).movedim(-1, 0)[None]
