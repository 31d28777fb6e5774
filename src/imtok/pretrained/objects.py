"""Object detection with an instance segmenter of the transformers library, as required by GenEval."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image

from imtok.config import ConfigError
from imtok.pretrained.networks import FrozenNetwork
from imtok.pretrained.transformers_folder import open_model

# fmt: off
COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
"""COCO's 80 classes in order, under GenEval's names, from which those in checkpoints differ in places."""
LEAST = 0.05
"""Minimum score of the objects that are returned."""


@dataclass(frozen=True)
class DetectedObject:
    """A detected object: class name, box (x0, y0, x1, y1 in pixels), score, and mask if available."""

    name: str
    box: tuple[float, float, float, float]
    score: float
    mask: Bool[np.ndarray, "height width"] | None = None


class InstanceSegmenter(FrozenNetwork):
    """A Mask2Former for COCO instances; boxes are the bounding boxes of the masks.

    Args:
        model: a `Mask2FormerForUniversalSegmentation`.
        processor: image processor of the model.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model, self.processor = model.float(), processor

    @torch.no_grad()
    def detect(self, picture: UInt8[np.ndarray, "h w 3"]) -> list[DetectedObject]:
        """Return all objects with a score of at least `LEAST`, including overlapping ones."""
        inputs = self.processor(images=[Image.fromarray(picture)], return_tensors="pt").to(self.model.device)
        (found,) = self.processor.post_process_instance_segmentation(
            self.model(**inputs), threshold=LEAST, target_sizes=[picture.shape[:2]], return_binary_maps=True
        )
        objects = []
        # Without segments the segmentation is a single empty map, hence not strict.
        for segment, mask in zip(found["segments_info"], found["segmentation"], strict=False):
            pixels = mask.cpu().numpy() > 0
            rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
            box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
            objects.append(DetectedObject(COCO[segment["label_id"]], box, segment["score"], pixels))
        return objects


def load_segmenter(folder: Path) -> InstanceSegmenter:
    """Load a segmenter from a folder in the transformers library's layout; no code in it is executed.

    Raises:
        ConfigError: the folder does not hold such a model, or its number of classes is not 80 (one-line message).
    """
    what = "Mask2Former with its image processor"
    model, processor = open_model(folder, "Mask2FormerForUniversalSegmentation", "AutoImageProcessor", what)
    if model.config.num_labels != len(COCO):
        raise ConfigError(f"{folder}: knows {model.config.num_labels} classes; COCO's {len(COCO)} instances are wanted")
    return InstanceSegmenter(model, processor)
