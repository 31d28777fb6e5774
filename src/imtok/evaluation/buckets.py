"""Size buckets of words and faces: those of TokBench, and those of imtok for small pictures."""

import math
from dataclasses import dataclass
from typing import Literal

FaceBuckets = Literal["first", "second"]
"""TokBench has published two versions of its face buckets."""
BUCKET_NAMES = ("small", "medium", "large")


@dataclass(frozen=True)
class SizeBuckets:
    """Half-open ranges of a size ratio; items below the first range are not scored.

    Attributes:
        rule: source of the limits.
        limits: lower limits of small, medium and large.
    """

    rule: str
    limits: tuple[float, float, float]

    def __str__(self) -> str:
        return f"{self.rule} ({', '.join(map(str, self.limits))})"

    def index(self, ratio: float) -> int | None:
        """Return 0 for small, 1 for medium, 2 for large, or None for items below the small range."""
        found = [position for position, limit in enumerate(self.limits) if ratio >= limit]
        return found[-1] if found else None


_TEXT = {
    128: SizeBuckets("imtok, 128 px", (0.06, 0.12, 0.18)),
    256: SizeBuckets("TokBench, 256 px", (0.02, 0.03, 0.04)),
    512: SizeBuckets("TokBench, 512 px", (0.01, 0.02, 0.03)),
    1024: SizeBuckets("TokBench, 1024 px", (0.005, 0.01, 0.02)),
}


def _face_rules(version: str, limits: dict[int, tuple[float, float, float]]) -> dict[int, SizeBuckets]:
    by_size = {size: SizeBuckets(f"TokBench ({version} version), {size} px", ratios) for size, ratios in limits.items()}
    return {128: SizeBuckets("imtok, 128 px", (0.2, 0.4, 0.6)), **by_size}


_FACE: dict[FaceBuckets, dict[int, SizeBuckets]] = {
    "first": _face_rules("first", {256: (0.0, 0.1, 0.2), 512: (0.0, 0.05, 0.2), 1024: (0.0, 0.05, 0.1)}),
    "second": _face_rules("second", {256: (0.1, 0.2, 0.3), 512: (0.05, 0.1, 0.2), 1024: (0.02, 0.05, 0.1)}),
}


def text_buckets(side: int) -> SizeBuckets:
    """Return the text buckets for pictures whose longer side has about `side` pixels as they enter the tokenizer."""
    return _TEXT[_nearest(side)]


def face_buckets(side: int, version: FaceBuckets = "second") -> SizeBuckets:
    """Return the face buckets for such pictures, in one of TokBench's versions."""
    return _FACE[version][_nearest(side)]


def _nearest(side: int) -> int:
    return min(_TEXT, key=lambda size: abs(math.log(side / size)))
