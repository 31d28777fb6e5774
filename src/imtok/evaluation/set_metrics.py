"""Metrics of a whole set of pictures, from features alone: inception score, precision and recall; parts of a set."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NEIGHBOURS = 3
"""k of precision and recall (Kynkäänniemi et al. 2019; ADM)."""
CLASS_PARTS = 10
"""Parts of a set whose class scores are averaged (Salimans et al. 2016)."""
_BLOCK = 1024


def disjoint_parts(total: int, parts: int) -> Int[np.ndarray, " total"]:
    """Which of so many disjoint parts each row of a set belongs to, whatever order the set has.

    This is torch-fidelity's division for the inception score, so that ours is the same number.
    """
    shuffled = np.random.RandomState(2020).permutation(total)  # its generator, its seed
    ends = np.array([(part + 1) * total // parts for part in range(parts)])
    found = np.empty(total, dtype=np.int64)
    found[shuffled] = np.searchsorted(ends, np.arange(total), side="right")
    return found


class ClassScore:
    """exp(mean KL(p(class | picture) | p(class))) (Salimans et al. 2016), from sums: no picture's logits are kept.

    It is called inception score where the classes are those of the published Inception-v3.
    """

    def __init__(self) -> None:
        self.count = 0
        self._information = 0.0
        self._classes: Tensor | float = 0.0

    def add(self, logits: Float[Tensor, "batch classes"]) -> None:
        """More pictures."""
        logs = logits.double().log_softmax(1)
        self._information += float((logs.exp() * logs).sum())
        self._classes = self._classes + logs.exp().sum(0)
        self.count += len(logits)

    def value(self) -> float:
        """Between 1 and the number of classes.

        Raises:
            ValueError: no pictures.
        """
        if not self.count or not isinstance(self._classes, Tensor):
            raise ValueError("no pictures to score")
        entropy = torch.special.entr(self._classes / self.count).sum()
        return float(torch.exp(self._information / self.count + entropy))


def neighbour_radii(
    features: Float[Tensor, "pictures dim"], neighbours: int = NEIGHBOURS
) -> Float[Tensor, " pictures"]:
    """How far the k-th nearest other picture of the same set is from each.

    Raises:
        ValueError: fewer than k other pictures.
    """
    if len(features) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need {neighbours + 1} pictures or more, got {len(features)}")
    blocks = features.split(_BLOCK)
    # The nearest of all is the picture itself.
    nearest = [torch.cdist(block, features).topk(neighbours + 1, largest=False).values[:, -1] for block in blocks]
    return torch.cat(nearest)


def covered(
    points: Float[Tensor, "points dim"], centres: Float[Tensor, "centres dim"], radii: Float[Tensor, " centres"]
) -> Bool[Tensor, " points"]:
    """Which points lie in one of the balls around the centres, by brute force in blocks.

    Generated pictures among the balls of the reference: their share is the precision. The reverse: the recall
    (Kynkäänniemi et al. 2019, eq. 1 and 2).
    """
    blocks = points.split(_BLOCK)
    inside = [torch.zeros(len(block), dtype=torch.bool, device=points.device) for block in blocks]
    for near, radius in zip(centres.split(_BLOCK), radii.split(_BLOCK), strict=True):
        for found, block in zip(inside, blocks, strict=True):
            found |= (torch.cdist(block, near) <= radius).any(1)
    return torch.cat(inside)
