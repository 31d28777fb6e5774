"""Meters: each looks at the originals of a batch and at every reconstructor's reconstructions of them, and adds up."""

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
        row: its place in the set.
        sample: with its annotations, in the pixels of `original`.
        original: at its own size.
        prepared: as it enters the tokenizer; the same unless the evaluation has a size.
        content: of that, what is no padding.
    """

    row: int
    sample: Sample
    original: Picture
    prepared: Picture
    content: Picture

    @property
    def place(self) -> dict[str, Any]:
        """What tells it from others in `items.jsonl`."""
        return {"row": self.row, "path": self.sample.path}


@dataclass(frozen=True, kw_only=True)
class ReconstructedPicture:
    """Its reconstruction by one reconstructor: what came out, of that what is no padding, and at the original's size."""

    output: Reconstruction
    content: Picture
    restored: Picture


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A metric of one reconstructor on one set.

    Attributes:
        items: one number a picture, word or face; or None, where the set as a whole has one number.
        value: that number.
        network: name of the network behind it; of several their names joined by " + ".
        sha256: of that network's weights, likewise.
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


class Meter(ABC, Generic[Found]):
    """One way of looking at reconstructions.

    Looking is the work and changes nothing, so anybody can do it; what was found is added up elsewhere.

    Attributes:
        what: it looks at, in a message.
    """

    what: str

    @abstractmethod
    def process(self, shown: Sequence[OriginalPicture], drawn: Mapping[str, Sequence[ReconstructedPicture]]) -> Found:
        """A batch of originals, and every reconstructor's reconstructions of them."""

    @abstractmethod
    def add(self, found: Found, groups: Sequence[int]) -> None:
        """What was found on the next batch, and the group of each of its pictures, which a bootstrap draws together."""

    @abstractmethod
    def results(self, name: str) -> dict[str, Measurement]:
        """A reconstructor's numbers, by the metric's name; empty when there was nothing to measure."""

    def items(self, shown: Sequence[OriginalPicture], found: Found) -> list[dict[str, Any]]:
        """What was looked at one by one in a batch, with all reconstructors' outcomes: lines of `items.jsonl`."""
        return []


class PixelMeter(Meter[dict[str, list[tuple[float, float]]]]):
    """PSNR and SSIM of each picture, as it enters and leaves the tokenizer."""

    what = "pixels"

    def __init__(self) -> None:
        self._groups: list[int] = []
        self._values: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def process(
        self, shown: Sequence[OriginalPicture], drawn: Mapping[str, Sequence[ReconstructedPicture]]
    ) -> dict[str, list[tuple[float, float]]]:
        originals = [_pixels(one.content) for one in shown]
        found = {}
        for name, several in drawn.items():
            pairs = zip(originals, (_pixels(one.content) for one in several), strict=True)
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
        self, shown: Sequence[OriginalPicture], found: dict[str, list[tuple[float, float]]]
    ) -> list[dict[str, Any]]:
        return [
            {
                "kind": "picture",
                **one.place,
                "psnr": {name: _finite(values[index][0]) for name, values in found.items()},
            }
            for index, one in enumerate(shown)
        ]


class PerceptualMeter(Meter[dict[str, list[float]]]):
    """Distance of VGG16 features of each picture.

    Args:
        network: whose features are compared, by the weights of its channels if it has any.
        metric: the distance's name.
    """

    def __init__(self, network: FeatureNetwork, metric: str = "vgg16_distance") -> None:
        self.network, self.metric, self._device = network, metric, device_of(network)
        self.what = metric
        self._groups: list[int] = []
        self._values: dict[str, list[float]] = defaultdict(list)

    @torch.no_grad()
    def process(
        self, shown: Sequence[OriginalPicture], drawn: Mapping[str, Sequence[ReconstructedPicture]]
    ) -> dict[str, list[float]]:
        originals, weights = self._maps([one.prepared for one in shown]), self.network.channel_weights()
        found = {}
        for name, several in drawn.items():
            apart = feature_distances(originals, self._maps([one.output.picture for one in several]), weights)
            found[name] = check_finite(apart, self.network.name).tolist()
        return found

    def _maps(self, pictures: Sequence[Picture]) -> list[Tensor]:
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
    """What a picture costs: the tokens' bits per pixel, the caption's bits, both per pixel, and the codes.

    Attributes:
        missing_caption: whether a tokenizer that hears of captions was told nothing.
    """

    bits_per_pixel: float | None
    caption_bits: float | None
    joint: float | None
    codes: Tensor | None
    missing_caption: bool


class CodeMeter(Meter[dict[str, list[Rate]]]):
    """Rate of each picture, and how much of each codebook the set uses.

    Args:
        codebook_sizes: of each reconstructor.
        rate_notes: what one has to know of its rate.
    """

    what = "rates"

    def __init__(self, codebook_sizes: Mapping[str, tuple[int, ...]], rate_notes: Mapping[str, str | None]) -> None:
        self._sizes, self._rate_notes = codebook_sizes, rate_notes
        self._groups: list[int] = []
        self._rates: dict[str, list[float]] = defaultdict(list)
        self._told: dict[str, list[float]] = defaultdict(list)
        self._untold: dict[str, int] = defaultdict(int)
        self._joint_rates: dict[str, list[float]] = defaultdict(list)
        self._codes: dict[str, list[Tensor]] = defaultdict(list)

    def process(
        self, shown: Sequence[OriginalPicture], drawn: Mapping[str, Sequence[ReconstructedPicture]]
    ) -> dict[str, list[Rate]]:
        return {name: [_rate(one.output) for one in several] for name, several in drawn.items()}

    def add(self, found: dict[str, list[Rate]], groups: Sequence[int]) -> None:
        self._groups += groups
        for name, rates in found.items():
            self._rates[name] += [one.bits_per_pixel for one in rates if one.bits_per_pixel is not None]
            self._told[name] += [one.caption_bits for one in rates if one.caption_bits is not None]
            self._untold[name] += sum(one.missing_caption for one in rates)
            self._joint_rates[name] += [one.joint for one in rates if one.joint is not None]
            self._codes[name] += [one.codes for one in rates if one.codes is not None]

    def missing_caption(self, name: str) -> int:
        """Of how many pictures a reconstructor that hears of captions was told nothing."""
        return self._untold[name]

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
                    found[f"{metric}_{index}" if several else metric] = Measurement(
                        value=value, note=note, count=len(self._codes[name])
                    )
            if several:
                value, chance = shared_information(codes)
                note = f"bits beyond the {chance:.3f} of shuffled codes; mean over pairs of codebooks"
                found["shared_information"] = Measurement(value=value, note=note, count=len(self._codes[name]))
        return found


def _rate(made: Reconstruction) -> Rate:
    both = None
    if made.bits_per_pixel is not None and made.caption_bits is not None:
        both = made.bits_per_pixel + made.caption_bits / made.picture[..., 0].size
    codes = None if made.codes is None else made.codes.int()  # half the memory of long
    return Rate(made.bits_per_pixel, made.caption_bits, both, codes, made.caption_bits is not None and not made.text)


def make_items(
    values: Sequence[float],
    groups: Sequence[int],
    buckets: Sequence[int] | None = None,
    bucket_names: tuple[str, ...] = ("",),
    min_items: int = MIN_ITEMS,
) -> Items:
    """Items from plain lists; without buckets all lie in one."""
    return Items(
        values=np.asarray(values, dtype=np.float64),
        groups=np.asarray(groups, dtype=np.int64),
        buckets=np.zeros(len(values), dtype=np.int64) if buckets is None else np.asarray(buckets, dtype=np.int64),
        bucket_names=bucket_names,
        min_items=min_items,
    )


def check_finite(answer: Tensor, name: str) -> Tensor:
    """What a network of that name has answered.

    Raises:
        ConfigError: NaN or infinity.
    """
    if not answer.isfinite().all():
        raise ConfigError(f"{name}: answers NaN or infinity; its weights may be broken")
    return answer


def device_of(network: nn.Module) -> torch.device:
    """Where its weights are."""
    return next(network.parameters()).device


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _pixels(picture: Picture) -> Tensor:
    return torch.from_numpy(np.array(picture)).movedim(-1, 0)[None]
