"""Objects in pictures: an instance segmenter of the transformers library, as GenEval wants one."""

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
"""COCO's 80 classes in their order, in GenEval's words: checkpoints spell some of them in other ways."""
LEAST = 0.05
"""Objects that are less certain are not even listed."""


@dataclass(frozen=True)
class DetectedObject:
    """An object: what it is, where (x0, y0, x1, y1 in pixels), how certainly, and its pixels if they are known."""

    name: str
    box: tuple[float, float, float, float]
    score: float
    mask: Bool[np.ndarray, "height width"] | None = None


class InstanceSegmenter(FrozenNetwork):
    """A Mask2Former for COCO's instances; boxes are those of the masks.

    Args:
        model: a Mask2FormerForUniversalSegmentation.
        processor: its image processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model, self.processor = model.float(), processor

    @torch.no_grad()
    def detect(self, picture: UInt8[np.ndarray, "h w 3"]) -> list[DetectedObject]:
        """All objects that it is a little certain of, overlapping ones included."""
        inputs = self.processor(images=[Image.fromarray(picture)], return_tensors="pt").to(self.model.device)
        (found,) = self.processor.post_process_instance_segmentation(
            self.model(**inputs), threshold=LEAST, target_sizes=[picture.shape[:2]], return_binary_maps=True
        )
        objects = []
        for about, mask in zip(found["segments_info"], found["segmentation"], strict=False):  # none: an empty map
            pixels = mask.cpu().numpy() > 0
            rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
            box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
            objects.append(DetectedObject(COCO[about["label_id"]], box, about["score"], pixels))
        return objects


def load_segmenter(folder: Path) -> InstanceSegmenter:
    """From a folder in the transformers library's layout; nothing in it is run.

    Raises:
        ConfigError: something else is there, or it knows other classes than COCO's 80; one line.
    """
    what = "Mask2Former with its image processor"
    model, processor = open_model(folder, "Mask2FormerForUniversalSegmentation", "AutoImageProcessor", what)
    if model.config.num_labels != len(COCO):
        raise ConfigError(f"{folder}: knows {model.config.num_labels} classes; COCO's {len(COCO)} instances are wanted")
    return InstanceSegmenter(model, processor)
