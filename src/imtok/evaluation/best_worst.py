"""Best and worst cases of each reconstructor, collected while a set is processed.

Cases of the first reconstructor are ranked by their outcome, those of the others by the difference from the first.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imtok.data.pictures import Picture, crop, downscale
from imtok.data.sample import TextRegion
from imtok.evaluation.meters import OriginalPicture, ReconstructedPicture
from imtok.evaluation.text import crop_word, normalized_edit_similarity

MOST = 3
"""Number of cases of a kind that are kept, of the best and of the worst each."""
WIDEST, _WIDEST_PART = 384, 896
"""Maximum side in pixels of the pictures, and of the words and faces, kept for the report, which shows none larger."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A word, face or picture that is among a reconstructor's best or worst.

    Attributes:
        data: name of the set.
        tokenizer: name of the reconstructor.
        baseline: name of the reconstructor that it is compared with; None for the first one.
        item: the item as in `items.jsonl`, with the outcome of every reconstructor.
        value: the word's normalized edit similarity, the face's cosine or the picture's PSNR; with a baseline, the
            difference from the baseline's.
        better: whether it is one of the best.
        original: the part of the original that shows the item.
        reconstructions: the same part of the reconstructor's output, and of the baseline's if there is one.
    """

    data: str
    tokenizer: str
    baseline: str | None
    item: Mapping[str, Any]
    value: float
    better: bool
    original: Picture
    reconstructions: Mapping[str, Picture]


def part_of(item: Mapping[str, Any], picture: Picture) -> Picture:
    """Crop the part of a picture that shows an item, at least one pixel, at the size at which the report shows it."""
    if item["kind"] == "picture":
        return downscale(picture, WIDEST)
    if item["kind"] == "word":
        region = TextRegion(box=tuple(item["box"]), text=item["text"], ratio=item.get("ratio"))
        return downscale(crop_word(picture, region), _WIDEST_PART)
    return downscale(crop(picture, *map(round, item["box"])), _WIDEST_PART)


def outcome_of(item: Mapping[str, Any], tokenizer: str) -> float | None:
    """Return the outcome of an item for a reconstructor, higher is better; None if it has no number."""
    if item["kind"] == "word":
        readable = item["original"] == item["text"]  # the judge reads the original correctly
        return normalized_edit_similarity(item["text"], item["read"][tokenizer]) if readable else None
    return item["similarity" if item["kind"] == "face" else "psnr"][tokenizer]


def value_of(item: Mapping[str, Any], tokenizer: str, baseline: str | None) -> float | None:
    """Return an item's outcome, minus the baseline's outcome if there is a baseline; None if either is missing."""
    ours = outcome_of(item, tokenizer)
    theirs = 0.0 if baseline is None else outcome_of(item, baseline)
    return None if ours is None or theirs is None else ours - theirs


class BestWorstCases:
    """Keeps the best and worst cases of each reconstructor; among equal cases, the earlier ones.

    For the first reconstructor, these are the items with the best and worst outcomes; for each of the others, the items
    with the largest gains and losses relative to the first.

    Args:
        data: name of the set.
        names: names of the reconstructors.
    """

    def __init__(self, data: str, names: Sequence[str]) -> None:
        self._data, self._names = data, names
        self._kept: dict[tuple[str, str, bool], list[Case]] = defaultdict(list)

    def see(
        self,
        batch: Sequence[OriginalPicture],
        reconstructions: Mapping[str, Sequence[ReconstructedPicture]],
        items: Sequence[dict[str, Any]],
    ) -> None:
        """Add the cases of a batch, given every reconstructor's reconstructions of it and the items found on it."""
        index_of_row = {picture.row: index for index, picture in enumerate(batch)}
        for item in items:
            index = index_of_row[item["row"]]
            for name in self._names:
                baseline = None if name == self._names[0] else self._names[0]
                names = [compared for compared in (baseline, name) if compared is not None]
                value = value_of(item, name, baseline) if reconstructions.keys() >= set(names) else None
                if value is None:
                    continue
                for better in self._sides(name, item["kind"], value, baseline):
                    restored = {compared: reconstructions[compared][index].restored for compared in names}
                    self.add(
                        Case(
                            data=self._data,
                            tokenizer=name,
                            baseline=baseline,
                            item=item,
                            value=value,
                            better=better,
                            original=part_of(item, batch[index].original),
                            reconstructions={
                                compared: part_of(item, picture) for compared, picture in restored.items()
                            },
                        )
                    )

    def _sides(self, name: str, kind: str, value: float, baseline: str | None) -> list[bool]:
        """Return for which rankings a value qualifies: True for the best so far, False for the worst so far."""
        sides = (True, False) if baseline is None else (value > 0,) if value != 0 else ()
        return [better for better in sides if self._qualifies(name, kind, better, value)]

    def copy(self) -> "BestWorstCases":
        """Return a copy with the cases so far."""
        other = BestWorstCases(self._data, self._names)
        other._kept.update({kind: list(kept) for kind, kept in self._kept.items()})
        return other

    def add(self, case: Case) -> None:
        """Add a case that comes after the present ones, if it qualifies."""
        kind = case.item["kind"]
        if self._qualifies(case.tokenizer, kind, case.better, case.value):
            kept = self._kept[case.tokenizer, kind, case.better]
            kept.append(case)
            kept.sort(key=lambda case: case.value, reverse=case.better)
            del kept[MOST:]

    def _qualifies(self, name: str, kind: str, better: bool, value: float) -> bool:
        kept = self._kept[name, kind, better]
        return len(kept) < MOST or (value > kept[-1].value if better else value < kept[-1].value)

    def cases(self) -> list[Case]:
        """Return the cases by reconstructor and kind, the best before the worst; in a small set a case may be both."""
        kinds = [(kind, better) for kind in ("word", "face", "picture") for better in (True, False)]
        return [case for name in self._names for kind, better in kinds for case in self._kept[name, kind, better]]
