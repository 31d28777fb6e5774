"""GenEval's scoring rules (Ghosh et al. 2023) over any object detector: are the objects there, so many, so placed?

The rules are those of the official scripts: a confidence above .3 (.9 where objects are counted), at most 16 objects
of a class, no suppression of overlapping ones, positions with a margin of a tenth, colours by a classifier of the
user's.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F

from imtok.config import ConfigError
from imtok.data.pictures import Picture, crop
from imtok.data.sample import Box
from imtok.pretrained.clip import CLIP
from imtok.pretrained.objects import DetectedObject

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COLOUR_TEXTS = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
CONFIDENCE, COUNTING_CONFIDENCE = 0.3, 0.9
MAX_OBJECTS = 16
MARGIN = 0.1
"""Share of both objects' sizes by which their centres must lie apart."""
BACKGROUND = 0x99
"""Grey that replaces what is not the object, before its colour is judged."""


@runtime_checkable
class ObjectDetector(Protocol):
    """Finds objects of COCO's 80 classes; the paper's is Mask2Former with a Swin-S.

    Attributes:
        name: stands beside the number.
        sha256: of its weights, likewise.
    """

    name: str
    sha256: str

    def detect(self, picture: Picture) -> Sequence[DetectedObject]:
        """All it sees, uncertain ones included."""
        ...


@runtime_checkable
class ColourJudge(Protocol):
    """Says which of `COLOURS` an object has; the paper's is CLIP ViT-L/14 (`ColoursByCLIP`).

    Attributes:
        name: stands beside the number.
        sha256: of its weights, likewise.
        size: of what kind and size it is, likewise.
    """

    name: str
    sha256: str
    size: str

    def colour(self, crop: Picture, name: str) -> str:
        """The colour of the object in the crop, the rest of which is grey where its mask is known."""
        ...


class ColoursByCLIP:
    """The colour whose texts are nearest to the picture of the object, as in GenEval.

    Args:
        network: the paper's is CLIP ViT-L/14.
    """

    def __init__(self, network: CLIP) -> None:
        self._network = network
        self.name, self.sha256, self.size = network.name, network.sha256, network.size

    @torch.no_grad()
    def colour(self, crop: Picture, name: str) -> str:
        """See `ColourJudge`."""
        texts = [text.format(colour=colour, name=name) for colour in COLOURS for text in COLOUR_TEXTS]
        seen, read = self._network.embed([crop], texts)
        colours = F.normalize(read.unflatten(0, (len(COLOURS), -1)).mean(1), dim=1)
        return COLOURS[int((colours @ seen[0]).argmax())]


@dataclass(frozen=True)
class GenEvalResult:
    """Whether a picture is right, and if not, why."""

    task: str
    prompt: str
    correct: bool
    reasons: tuple[str, ...] = ()


def judge(
    wanted: Mapping[str, Any], picture: Picture, detections: Iterable[DetectedObject], colours: ColourJudge
) -> GenEvalResult:
    """Whether one picture shows what its prompt asks for.

    Every clause of `include` must hold for the most certain objects of its class, no clause of `exclude` may.

    Args:
        wanted: the prompt's line in GenEval's file.
        picture: to be judged.
        detections: in it.
        colours: names the colours of objects.

    Raises:
        ConfigError: a line that is none of GenEval's.
    """
    check_line(wanted)
    task, prompt = wanted["tag"], wanted["prompt"]
    seen = filter_detections(detections, COUNTING_CONFIDENCE if task == "counting" else CONFIDENCE)
    reasons: list[str] = []
    groups: list[list[DetectedObject] | None] = []  # of each clause the objects that fulfil it
    for clause in wanted["include"]:
        found = seen.get(clause["class"], [])[: clause["count"]]
        reason = _miss(clause, found, groups, picture, colours)
        reasons += [reason] if reason else []
        groups.append(None if reason else found)
    for clause in wanted.get("exclude", []):
        if (count := len(seen.get(clause["class"], []))) >= clause["count"]:
            reasons.append(f"{count} {clause['class']}, fewer than {clause['count']} are wanted")
    return GenEvalResult(task, prompt, not reasons, tuple(reasons))


def filter_detections(detections: Iterable[DetectedObject], least: float) -> dict[str, list[DetectedObject]]:
    """The at most `MAX_OBJECTS` most certain objects of each class that are more certain than the least."""
    seen: dict[str, list[DetectedObject]] = defaultdict(list)
    for one in sorted(detections, key=lambda one: -one.score):
        if one.score > least and len(seen[one.name]) < MAX_OBJECTS:
            seen[one.name].append(one)
    return dict(seen)


def relations(box: Box, other: Box) -> set[str]:
    """Where a box lies as seen from another: `left of`, `right of`, `above`, `below`; at most two, or none.

    Of the offset between the centres, a tenth of both sizes is taken away on each axis; what is left must be more than
    half of the whole offset's length.
    """
    (a0, b0, a1, b1), (c0, d0, c1, d1) = box, other
    offset = np.array([(a0 + a1) - (c0 + c1), (b0 + b1) - (d0 + d1)]) / 2
    sizes = np.array([abs(a1 - a0) + abs(c1 - c0), abs(b1 - b0) + abs(d1 - d0)])
    left_over = np.maximum(np.abs(offset) - MARGIN * sizes, 0) * np.sign(offset)
    if (np.abs(left_over) < 1e-3).all():
        return set()
    x, y = left_over / np.linalg.norm(offset)
    names = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in names.items() if holds}


def crop_object(picture: Picture, found: DetectedObject) -> Picture:
    """The object's box, with what is not the object in grey."""
    if found.mask is not None:
        picture = np.where(found.mask[:, :, None], picture, np.uint8(BACKGROUND))
    return crop(picture, *map(round, found.box))


def check_line(wanted: Mapping[str, Any]) -> None:
    """Before anybody's judges are asked: is this a line of GenEval's file?

    Raises:
        ConfigError: it is none.
    """
    try:
        clauses = [*wanted["include"], *wanted.get("exclude", [])]
        right = isinstance(wanted["prompt"], str) and wanted["tag"] in TASKS
        right &= all(isinstance(one["class"], str) and isinstance(one["count"], int) for one in clauses)
        for place, (_, target) in ((i, one["position"]) for i, one in enumerate(clauses) if "position" in one):
            right &= target in range(place)  # objects of an earlier clause
        why = "" if right else " (a value of another kind)"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        right, why = False, f" ({error!r})"
    if not right:
        raise ConfigError(f"GenEval: {dict(wanted)} is no line of its prompts{why}")


def _miss(
    clause: Mapping[str, Any],
    found: list[DetectedObject],
    groups: Sequence[list[DetectedObject] | None],
    picture: Picture,
    colours: ColourJudge,
) -> str | None:
    """Why a clause does not hold; None when it does."""
    name, count = clause["class"], clause["count"]
    if len(found) < count:
        return f"{len(found)} {name}, {count} are wanted"
    if "color" in clause:
        named = [colours.colour(crop_object(picture, one), name) for one in found]
        if named.count(clause["color"]) < count:
            return f"{name} is {' and '.join(named)}, {clause['color']} is wanted"
    if "position" in clause:
        relation, target = clause["position"]
        others = groups[target]
        if others is None:
            return f"nothing for {name} to be {relation}"
        if not all(relation in relations(one.box, other.box) for one in found for other in others):
            return f"{name} is not {relation} its target"
    return None
