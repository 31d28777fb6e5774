"""What a contestant draws best and worst beside the first: words, faces and pictures, kept while a set goes by."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imtok.data.pictures import Picture
from imtok.data.sample import TextRegion
from imtok.evaluation.meters import Drawn, Shown
from imtok.evaluation.text import crop_word, normalized_edit_similarity

MOST = 3
"""Cases of a kind that are kept, of the best and of the worst."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A word, face or picture that one contestant draws better or worse than the first.

    Attributes:
        data: the set.
        tokenizer: the contestant.
        baseline: the first one.
        item: as in `items.jsonl`, with the outcome of every contestant.
        gain: of the word's normalized edit similarity, the face's cosine or the picture's PSNR over the baseline's.
        original: the part of the picture that it is about.
        before: the same of the baseline's reconstruction.
        after: the same of the contestant's.
    """

    data: str
    tokenizer: str
    baseline: str
    item: Mapping[str, Any]
    gain: float
    original: Picture
    before: Picture
    after: Picture


def crop_of(item: Mapping[str, Any], picture: Picture) -> Picture:
    """The part of a picture that an item is about, a pixel at least."""
    if item["kind"] == "picture":
        return picture
    if item["kind"] == "word":
        return crop_word(picture, TextRegion(box=tuple(item["box"]), text=item["text"], ratio=item.get("ratio")))
    x0, y0, x1, y1 = (round(value) for value in item["box"])
    height, width = picture.shape[:2]
    left, top = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    return picture[top : max(y1, top + 1), left : max(x1, left + 1)]


def gain_of(item: Mapping[str, Any], tokenizer: str, baseline: str) -> float:
    """How much better a contestant draws an item than the baseline; 0 where the two cannot be compared."""
    if item["kind"] == "word":
        if item["original"] != item["text"]:
            return 0.0  # the judge cannot read it at all
        ours, theirs = (normalized_edit_similarity(item["text"], item["read"][name]) for name in (tokenizer, baseline))
    else:
        outcomes = item["similarity" if item["kind"] == "face" else "psnr"]
        ours, theirs = outcomes[tokenizer], outcomes[baseline]
    return 0.0 if ours is None or theirs is None else ours - theirs


class CaseKeeper:
    """Keeps the best and worst cases of each contestant; of equal ones those that came first.

    Args:
        data: the set's name.
        names: of the contestants; all are compared with the first.
    """

    def __init__(self, data: str, names: Sequence[str]) -> None:
        self._data, self._names = data, names
        self._kept: dict[tuple[str, str, bool], list[Case]] = defaultdict(list)

    def see(
        self, batch: Sequence[Shown], drawn: Mapping[str, Sequence[Drawn]], items: Sequence[dict[str, Any]]
    ) -> None:
        """A batch, every contestant's reconstructions of it, and what was found on it."""
        place = {one.row: index for index, one in enumerate(batch)}
        for item in items:
            index = place[item["row"]]
            for name in self._names[1:]:
                if not {name, self._names[0]} <= drawn.keys():
                    continue
                gain = gain_of(item, name, self._names[0])
                if not self._wants(name, item["kind"], gain):
                    continue
                pictures = batch[index].original, *(drawn[one][index].restored for one in (self._names[0], name))
                original, before, after = (crop_of(item, picture).copy() for picture in pictures)
                self.add(
                    Case(
                        data=self._data,
                        tokenizer=name,
                        baseline=self._names[0],
                        item=item,
                        gain=gain,
                        original=original,
                        before=before,
                        after=after,
                    )
                )

    def copy(self) -> "CaseKeeper":
        """With the same cases so far."""
        other = CaseKeeper(self._data, self._names)
        other._kept.update({kind: list(kept) for kind, kept in self._kept.items()})
        return other

    def add(self, case: Case) -> None:
        """One that came after those that are here."""
        kind = case.item["kind"]
        if self._wants(case.tokenizer, kind, case.gain):
            kept = self._kept[case.tokenizer, kind, case.gain > 0]
            kept.append(case)
            kept.sort(key=lambda one: -abs(one.gain))
            del kept[MOST:]

    def _wants(self, name: str, kind: str, gain: float) -> bool:
        kept = self._kept[name, kind, gain > 0]
        return gain != 0 and (len(kept) < MOST or abs(kept[-1].gain) < abs(gain))

    def cases(self) -> list[Case]:
        """What was kept, by contestant and kind, gains before losses and the largest first."""
        kinds = [(kind, better) for kind in ("word", "face", "picture") for better in (True, False)]
        return [case for name in self._names[1:] for kind, better in kinds for case in self._kept[name, kind, better]]
