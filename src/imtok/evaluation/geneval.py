"""GenEval's scoring rules (Ghosh et al. 2023) for any object detector: presence, count, colour and position of objects.

The rules are those of the official scripts: a confidence above .3 (.9 in the counting task), at most 16 objects of a
class, no suppression of overlapping objects, and positions with a margin of a tenth. Colours are determined by a
classifier that the user supplies.
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
"""Share of the two objects' summed sizes that is subtracted from the offset between their centres."""
BACKGROUND = 0x99
"""Grey level that replaces all pixels outside an object before its colour is classified."""


@runtime_checkable
class ObjectDetector(Protocol):
    """Detects objects of COCO's 80 classes; the paper uses Mask2Former with a Swin-S.

    Attributes:
        name: name of the network, reported with the score.
        sha256: hash of its weights, reported with the score.
    """

    name: str
    sha256: str

    def detect(self, picture: Picture) -> Sequence[DetectedObject]:
        """Return all detected objects, including those of low confidence."""
        ...


@runtime_checkable
class ColourJudge(Protocol):
    """Classifies the colour of an object as one of `COLOURS`; the paper uses CLIP ViT-L/14 (`ColoursByCLIP`).

    Attributes:
        name: name of the network, reported with the score.
        sha256: hash of its weights, reported with the score.
        size: description of its architecture and size, reported with the score.
    """

    name: str
    sha256: str
    size: str

    def colour(self, crop: Picture, name: str) -> str:
        """Return the colour of the object in the crop, whose other pixels are grey if the object's mask is known."""
        ...


class ColoursByCLIP:
    """Chooses the colour whose texts have the highest CLIP similarity to the crop of the object, as in GenEval.

    Args:
        network: CLIP; the paper uses ViT-L/14.
    """

    def __init__(self, network: CLIP) -> None:
        self._network = network
        self.name, self.sha256, self.size = network.name, network.sha256, network.size

    @torch.no_grad()
    def colour(self, crop: Picture, name: str) -> str:
        """Return the colour of the object in the crop; see `ColourJudge`."""
        texts = [text.format(colour=colour, name=name) for colour in COLOURS for text in COLOUR_TEXTS]
        crop_embeddings, text_embeddings = self._network.embed([crop], texts)
        colours = F.normalize(text_embeddings.unflatten(0, (len(COLOURS), -1)).mean(1), dim=1)
        return COLOURS[int((colours @ crop_embeddings[0]).argmax())]


@dataclass(frozen=True)
class GenEvalResult:
    """Whether a picture is correct, and if not, the reasons."""

    task: str
    prompt: str
    correct: bool
    reasons: tuple[str, ...] = ()


def judge(
    wanted: Mapping[str, Any], picture: Picture, detections: Iterable[DetectedObject], colours: ColourJudge
) -> GenEvalResult:
    """Judge whether a picture shows what its prompt asks for.

    Every clause of `include` must hold for the objects of its class with the highest scores, and no clause of `exclude`
    may hold.

    Args:
        wanted: the prompt's line in GenEval's file.
        picture: the picture.
        detections: objects detected in it.
        colours: classifier of the objects' colours.

    Raises:
        ConfigError: the line does not have GenEval's format.
    """
    check_line(wanted)
    task, prompt = wanted["tag"], wanted["prompt"]
    detected = filter_detections(detections, COUNTING_CONFIDENCE if task == "counting" else CONFIDENCE)
    reasons: list[str] = []
    matches: list[list[DetectedObject] | None] = []  # for each clause, the objects that fulfil it
    for clause in wanted["include"]:
        found = detected.get(clause["class"], [])[: clause["count"]]
        reason = _unmet_reason(clause, found, matches, picture, colours)
        reasons += [reason] if reason else []
        matches.append(None if reason else found)
    for clause in wanted.get("exclude", []):
        if (count := len(detected.get(clause["class"], []))) >= clause["count"]:
            reasons.append(f"{count} {clause['class']}, fewer than {clause['count']} are wanted")
    return GenEvalResult(task, prompt, not reasons, tuple(reasons))


def filter_detections(detections: Iterable[DetectedObject], threshold: float) -> dict[str, list[DetectedObject]]:
    """Return at most `MAX_OBJECTS` objects of each class, by descending score, with scores above `threshold`."""
    kept: dict[str, list[DetectedObject]] = defaultdict(list)
    for detection in sorted(detections, key=lambda detection: -detection.score):
        if detection.score > threshold and len(kept[detection.name]) < MAX_OBJECTS:
            kept[detection.name].append(detection)
    return dict(kept)


def relations(box: Box, other: Box) -> set[str]:
    """Return the position of a box relative to another: at most two of `left of`, `right of`, `above`, `below`.

    On each axis, the offset between the centres is reduced by `MARGIN` times the sum of the two sizes; the remainder
    must exceed half of the length of the full offset.
    """
    (a0, b0, a1, b1), (c0, d0, c1, d1) = box, other
    offset = np.array([(a0 + a1) - (c0 + c1), (b0 + b1) - (d0 + d1)]) / 2
    sizes = np.array([abs(a1 - a0) + abs(c1 - c0), abs(b1 - b0) + abs(d1 - d0)])
    remainder = np.maximum(np.abs(offset) - MARGIN * sizes, 0) * np.sign(offset)
    if (np.abs(remainder) < 1e-3).all():
        return set()
    x, y = remainder / np.linalg.norm(offset)
    names = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in names.items() if holds}


def crop_object(picture: Picture, found: DetectedObject) -> Picture:
    """Crop an object's box, with the pixels outside its mask, if it has one, replaced by grey."""
    if found.mask is not None:
        picture = np.where(found.mask[:, :, None], picture, np.uint8(BACKGROUND))
    return crop(picture, *map(round, found.box))


def check_line(wanted: Mapping[str, Any]) -> None:
    """Check that a line has the format of GenEval's file.

    Raises:
        ConfigError: it does not.
    """
    try:
        clauses = [*wanted["include"], *wanted.get("exclude", [])]
        valid = isinstance(wanted["prompt"], str) and wanted["tag"] in TASKS
        valid &= all(isinstance(clause["class"], str) and isinstance(clause["count"], int) for clause in clauses)
        for index, (_, target) in ((i, clause["position"]) for i, clause in enumerate(clauses) if "position" in clause):
            valid &= target in range(index)  # the target is an earlier clause
        why = "" if valid else " (a value of another kind)"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        valid, why = False, f" ({error!r})"
    if not valid:
        raise ConfigError(f"GenEval: {dict(wanted)} is no line of its prompts{why}")


def _unmet_reason(
    clause: Mapping[str, Any],
    found: list[DetectedObject],
    matches: Sequence[list[DetectedObject] | None],
    picture: Picture,
    colours: ColourJudge,
) -> str | None:
    """Return why a clause does not hold; None if it holds."""
    name, count = clause["class"], clause["count"]
    if len(found) < count:
        return f"{len(found)} {name}, {count} are wanted"
    if "color" in clause:
        classified = [colours.colour(crop_object(picture, detection), name) for detection in found]
        if classified.count(clause["color"]) < count:
            return f"{name} is {' and '.join(classified)}, {clause['color']} is wanted"
    if "position" in clause:
        relation, target = clause["position"]
        others = matches[target]
        if others is None:
            return f"nothing for {name} to be {relation}"
        if not all(relation in relations(detection.box, other.box) for detection in found for other in others):
            return f"{name} is not {relation} its target"
    return None
