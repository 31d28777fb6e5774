"""Compare annotated words with ground truth: recall and precision by boxes matched one to one.

    imtok annotate PICTURES SHARDS --text
    python benchmarks/annotation_quality.py SHARDS TRUTH.jsonl [--label gt_exact] [--level word]

A line of TRUTH is {"image", "words": [{"box", "text", "level"}], "ignore": [boxes], "label"}. Boxes are matched so that
the number of pairs with enough overlap is the largest possible. A found word that lies in an `ignore` box for the
greater part counts neither for nor against.
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
    """Sums over pictures."""

    pictures: int = 0
    wanted: int = 0
    found: int = 0
    ignored: int = 0
    matched: int = 0
    read: int = 0

    def report(self) -> str:
        """Three lines."""
        considered = self.found - self.ignored
        return (
            f"{self.pictures} pictures, {self.wanted} words wanted; {self.found} found, {self.ignored} ignored\n"
            f"recall {self.matched / max(1, self.wanted):.4f}  precision {self.matched / max(1, considered):.4f}\n"
            f"text of the matched words equal, case aside: {self.read / max(1, self.matched):.4f}"
        )


def overlaps(left: Boxes, right: Boxes) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "n m"]]:
    """Intersection over union of every pair, and intersection over the area of the left box."""
    low = np.maximum(left[:, None, :2], right[None, :, :2])
    high = np.minimum(left[:, None, 2:], right[None, :, 2:])
    shared = (high - low).clip(min=0).prod(-1)
    left_area, right_area = ((boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (left, right))
    return shared / (left_area[:, None] + right_area - shared), shared / left_area[:, None]


def match(wanted: Boxes, found: Boxes, least_iou: float) -> list[tuple[int, int]]:
    """Pairs (wanted, found) that overlap enough, each box in one pair at most, as many as possible."""
    iou, _ = overlaps(wanted, found)
    gain = np.where(iou >= least_iou, 1 + 1e-3 * iou, 0)
    return [
        (int(i), int(j)) for i, j in zip(*linear_sum_assignment(gain, maximize=True), strict=True) if gain[i, j] > 0
    ]


def compare(truth: Iterator[dict[str, Any]], shards: Path, least_iou: float) -> Counts:
    """Count over all pictures that both sides have; those of the truth that are not annotated count as missed."""
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
        shards: what `imtok annotate` wrote.
        truth: JSONL.
        label: only pictures of the truth with this label.
        level: only words of this level.
        iou: overlap at which two boxes are the same word.
    """
    rows = (json.loads(line) for line in truth.read_text(encoding="utf-8").splitlines())
    chosen = (row for row in rows if label in (None, row.get("label")))
    levelled = (
        row | {"words": [word for word in row["words"] if level in (None, word.get("level"))]} for row in chosen
    )
    print(compare(levelled, shards, iou).report())


if __name__ == "__main__":
    tyro.cli(main)
