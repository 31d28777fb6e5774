"""What reconstructors draw best and worst, all but the first beside the first; kept while a set goes by."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imtok.data.pictures import Picture, crop, downscale
from imtok.data.sample import TextRegion
from imtok.evaluation.meters import OriginalPicture, ReconstructedPicture
from imtok.evaluation.text import crop_word, normalized_edit_similarity

MOST = 3
"""Cases of a kind that are kept, of the best and of the worst."""
WIDEST, _WIDEST_PART = 384, 896
"""Pixels of the pictures, words and faces that are kept for the report, which shows none larger."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A word, face or picture that a reconstructor draws best or worst.

    Attributes:
        data: the set.
        tokenizer: the reconstructor.
        baseline: that it is compared with; None for the first one.
        item: as in `items.jsonl`, with the outcome of every reconstructor.
        value: the word's normalized edit similarity, the face's cosine or the picture's PSNR; with a baseline, how much
            higher it is than the baseline's.
        better: whether it is one of the best.
        original: the part of the picture that it is about.
        drawn: the same of the baseline's reconstruction, if there is one, and of the reconstructor's.
    """

    data: str
    tokenizer: str
    baseline: str | None
    item: Mapping[str, Any]
    value: float
    better: bool
    original: Picture
    drawn: Mapping[str, Picture]


def part_of(item: Mapping[str, Any], picture: Picture) -> Picture:
    """The part of a picture that an item is about, a pixel at least, as large as the report shows it."""
    if item["kind"] == "picture":
        return downscale(picture, WIDEST)
    if item["kind"] == "word":
        region = TextRegion(box=tuple(item["box"]), text=item["text"], ratio=item.get("ratio"))
        return downscale(crop_word(picture, region), _WIDEST_PART)
    return downscale(crop(picture, *map(round, item["box"])), _WIDEST_PART)


def outcome_of(item: Mapping[str, Any], tokenizer: str) -> float | None:
    """How well a reconstructor draws an item; None where there is no number for it."""
    if item["kind"] == "word":
        readable = item["original"] == item["text"]  # by the judge, on the original
        return normalized_edit_similarity(item["text"], item["read"][tokenizer]) if readable else None
    return item["similarity" if item["kind"] == "face" else "psnr"][tokenizer]


def value_of(item: Mapping[str, Any], tokenizer: str, baseline: str | None) -> float | None:
    """How well a reconstructor draws an item, or how much better than the baseline; None where that has no number."""
    ours = outcome_of(item, tokenizer)
    theirs = 0.0 if baseline is None else outcome_of(item, baseline)
    return None if ours is None or theirs is None else ours - theirs


class BestWorstCases:
    """Keeps the best and worst cases of each reconstructor; of equal ones those that came first.

    Of the first reconstructor these are what it draws best and worst, of the others what gains and loses most beside it.

    Args:
        data: the set's name.
        names: of the reconstructors.
    """

    def __init__(self, data: str, names: Sequence[str]) -> None:
        self._data, self._names = data, names
        self._kept: dict[tuple[str, str, bool], list[Case]] = defaultdict(list)

    def see(
        self,
        batch: Sequence[OriginalPicture],
        drawn: Mapping[str, Sequence[ReconstructedPicture]],
        items: Sequence[dict[str, Any]],
    ) -> None:
        """A batch, every reconstructor's reconstructions of it, and what was found on it."""
        place = {one.row: index for index, one in enumerate(batch)}
        for item in items:
            index = place[item["row"]]
            for name in self._names:
                baseline = None if name == self._names[0] else self._names[0]
                shown = [one for one in (baseline, name) if one is not None]
                value = value_of(item, name, baseline) if drawn.keys() >= set(shown) else None
                if value is None:
                    continue
                for better in self._sides(name, item["kind"], value, baseline):
                    restored = {one: drawn[one][index].restored for one in shown}
                    self.add(
                        Case(
                            data=self._data,
                            tokenizer=name,
                            baseline=baseline,
                            item=item,
                            value=value,
                            better=better,
                            original=part_of(item, batch[index].original),
                            drawn={one: part_of(item, picture) for one, picture in restored.items()},
                        )
                    )

    def _sides(self, name: str, kind: str, value: float, baseline: str | None) -> list[bool]:
        """Whether a value is among the best so far, the worst, or both."""
        sides = (True, False) if baseline is None else (value > 0,) if value != 0 else ()
        return [better for better in sides if self._wants(name, kind, better, value)]

    def copy(self) -> "BestWorstCases":
        """With the same cases so far."""
        other = BestWorstCases(self._data, self._names)
        other._kept.update({kind: list(kept) for kind, kept in self._kept.items()})
        return other

    def add(self, case: Case) -> None:
        """One that came after those that are here."""
        kind = case.item["kind"]
        if self._wants(case.tokenizer, kind, case.better, case.value):
            kept = self._kept[case.tokenizer, kind, case.better]
            kept.append(case)
            kept.sort(key=lambda one: one.value, reverse=case.better)
            del kept[MOST:]

    def _wants(self, name: str, kind: str, better: bool, value: float) -> bool:
        kept = self._kept[name, kind, better]
        return len(kept) < MOST or (value > kept[-1].value if better else value < kept[-1].value)

    def cases(self) -> list[Case]:
        """What was kept, by reconstructor and kind, the best before the worst; in a small set one may be both."""
        kinds = [(kind, better) for kind in ("word", "face", "picture") for better in (True, False)]
        return [case for name in self._names for kind, better in kinds for case in self._kept[name, kind, better]]
