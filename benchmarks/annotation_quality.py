"""Compare annotated words with ground truth: recall and precision of boxes matched one to one.

    imtok annotate PICTURES SHARDS --text
    python benchmarks/annotation_quality.py SHARDS TRUTH.jsonl [--label gt_exact] [--level word]

A line of TRUTH is {"image", "words": [{"box", "text", "level"}], "ignore": [boxes], "label"}. Boxes are matched so that
the number of pairs with enough overlap is as large as possible. An unmatched annotated word that has more than half of
its area in an `ignore` box is left out of the precision.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tyro
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from imtok.data.shards import ShardReader

Boxes = Float[np.ndarray, "n 4"]


@dataclass
class Counts:
    """Counts summed over pictures.

    Attributes:
        pictures: pictures of the ground truth.
        wanted: words of the ground truth.
        found: annotated words.
        ignored: unmatched annotated words inside `ignore` boxes.
        matched: pairs of an annotated word and a ground-truth word.
        read: matched pairs with the same text, ignoring case.
    """

    pictures: int = 0
    wanted: int = 0
    found: int = 0
    ignored: int = 0
    matched: int = 0
    read: int = 0

    def report(self) -> str:
        """Return recall, precision and the share of correct texts as three lines."""
        considered = self.found - self.ignored
        return (
            f"{self.pictures} pictures, {self.wanted} words wanted; {self.found} found, {self.ignored} ignored\n"
            f"recall {self.matched / max(1, self.wanted):.4f}  precision {self.matched / max(1, considered):.4f}\n"
            f"text of the matched words equal, case aside: {self.read / max(1, self.matched):.4f}"
        )


def overlaps(left: Boxes, right: Boxes) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "n m"]]:
    """Return the intersection over union of every pair, and the intersection divided by the area of the left box."""
    low = np.maximum(left[:, None, :2], right[None, :, :2])
    high = np.minimum(left[:, None, 2:], right[None, :, 2:])
    shared = (high - low).clip(min=0).prod(-1)
    left_area, right_area = ((boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (left, right))
    return shared / (left_area[:, None] + right_area - shared), shared / left_area[:, None]


def match(wanted: Boxes, found: Boxes, least_iou: float) -> list[tuple[int, int]]:
    """Return as many index pairs (wanted, found) with enough overlap as possible; each box is in at most one pair."""
    iou, _ = overlaps(wanted, found)
    gain = np.where(iou >= least_iou, 1 + 1e-3 * iou, 0)
    return [
        (int(i), int(j)) for i, j in zip(*linear_sum_assignment(gain, maximize=True), strict=True) if gain[i, j] > 0
    ]


def compare(truth: Iterator[dict[str, Any]], shards: Path, least_iou: float) -> Counts:
    """Count over all pictures of the ground truth; all words of a picture without annotations count as missed."""
    annotated = {PurePosixPath(sample.path).name: sample for sample in ShardReader(shards).annotations()}
    counts = Counts()
    for row in truth:
        counts.pictures += 1
        counts.wanted += len(row["words"])
        sample = annotated.get(PurePosixPath(row["image"]).name)
        words = (sample.words or []) if sample else []
        wanted = np.array([word["box"] for word in row["words"]], dtype=float).reshape(-1, 4)
        found = np.array([word.box for word in words], dtype=float).reshape(-1, 4)
        pairs = match(wanted, found, least_iou)
        unmatched = sorted(set(range(len(found))) - {j for _, j in pairs})
        ignore = np.array(row.get("ignore") or [], dtype=float).reshape(-1, 4)
        _, covered = overlaps(found[unmatched], ignore)
        counts.found += len(found)
        counts.matched += len(pairs)
        counts.ignored += int((covered.max(1, initial=0) > 0.5).sum())
        counts.read += sum(row["words"][i]["text"].casefold() == words[j].text.casefold() for i, j in pairs)
    return counts


def main(
    shards: tyro.conf.Positional[Path],
    truth: tyro.conf.Positional[Path],
    label: str | None = None,
    level: str | None = None,
    iou: float = 0.5,
) -> None:
    """Print recall and precision of annotated words.

    Args:
        shards: folder of shards that `imtok annotate` wrote.
        truth: JSONL file with the ground truth.
        label: use only the ground truth's pictures with this label.
        level: use only the ground truth's words of this level.
        iou: least intersection over union at which two boxes are the same word.
    """
    rows = (json.loads(line) for line in truth.read_text(encoding="utf-8").splitlines())
    selected = (row for row in rows if label in (None, row.get("label")))
    filtered = (
        row | {"words": [word for word in row["words"] if level in (None, word.get("level"))]} for row in selected
    )
    print(compare(filtered, shards, iou).report())


if __name__ == "__main__":
    tyro.cli(main)
