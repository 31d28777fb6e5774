"""Metrics of whole sets, computed from features: inception score, precision, recall; and the division into parts."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NEIGHBOURS = 3
"""Number k of nearest neighbours in precision and recall (Kynkäänniemi et al. 2019; ADM)."""
CLASS_PARTS = 10
"""Number of parts of a set whose class scores are averaged (Salimans et al. 2016)."""
_BLOCK = 1024


def disjoint_parts(total: int, parts: int) -> Int[np.ndarray, " total"]:
    """Assign each of `total` rows of a set to one of `parts` disjoint random parts of nearly equal size.

    The division is the one that torch-fidelity uses for the inception score, so that the scores agree.

    Returns:
        The number of each row's part, from 0 to `parts` - 1.
    """
    shuffled = np.random.RandomState(2020).permutation(total)  # generator and seed of torch-fidelity
    ends = np.array([(part + 1) * total // parts for part in range(parts)])
    found = np.empty(total, dtype=np.int64)
    found[shuffled] = np.searchsorted(ends, np.arange(total), side="right")
    return found


class ClassScore:
    """exp(mean KL(p(class | picture) | p(class))) (Salimans et al. 2016), accumulated as sums without keeping logits.

    It is called inception score if the classifier is the published Inception-v3.
    """

    def __init__(self) -> None:
        self.count = 0
        self._information = 0.0
        self._classes: Tensor | float = 0.0

    def add(self, logits: Float[Tensor, "batch classes"]) -> None:
        """Add the logits of more pictures."""
        logs = logits.double().log_softmax(1)
        self._information += float((logs.exp() * logs).sum())
        self._classes = self._classes + logs.exp().sum(0)
        self.count += len(logits)

    def value(self) -> float:
        """Return the score, between 1 and the number of classes.

        Raises:
            ValueError: there are no pictures.
        """
        if not self.count or not isinstance(self._classes, Tensor):
            raise ValueError("no pictures to score")
        entropy = torch.special.entr(self._classes / self.count).sum()
        return float(torch.exp(self._information / self.count + entropy))


def neighbour_radii(
    features: Float[Tensor, "pictures dim"], neighbours: int = NEIGHBOURS
) -> Float[Tensor, " pictures"]:
    """Return the distance of each picture's features to those of its k-th nearest other picture in the same set.

    Raises:
        ValueError: there are fewer than k other pictures.
    """
    if len(features) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need {neighbours + 1} pictures or more, got {len(features)}")
    blocks = features.split(_BLOCK)
    # One more neighbour, because the nearest is the picture itself.
    nearest = [torch.cdist(block, features).topk(neighbours + 1, largest=False).values[:, -1] for block in blocks]
    return torch.cat(nearest)


def covered(
    points: Float[Tensor, "points dim"], centres: Float[Tensor, "centres dim"], radii: Float[Tensor, " centres"]
) -> Bool[Tensor, " points"]:
    """Return which points lie in at least one of the balls around the centres, by brute force in blocks.

    The precision is the share of generated pictures in the balls of the reference, the recall the share of reference
    pictures in the balls of the generated ones (Kynkäänniemi et al. 2019, eq. 1 and 2).
    """
    blocks = points.split(_BLOCK)
    inside = [torch.zeros(len(block), dtype=torch.bool, device=points.device) for block in blocks]
    for centre_block, radius_block in zip(centres.split(_BLOCK), radii.split(_BLOCK), strict=True):
        for found, block in zip(inside, blocks, strict=True):
            found |= (torch.cdist(block, centre_block) <= radius_block).any(1)
    return torch.cat(inside)
