"""A tiny Mask2Former with random weights, saved and loaded through the registry."""

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from imtok import pretrained
from imtok.config import ConfigError
from imtok.pretrained.objects import COCO


def test_detections_come_from_the_highest_scoring_queries(tiny_segmenter: Path) -> None:
    from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

    network = pretrained.load("object_detector/mask2former", file=tiny_segmenter)
    picture = np.ascontiguousarray(data.astronaut()[:90, :120])
    found = network.detect(picture)
    assert found
    model = Mask2FormerForUniversalSegmentation.from_pretrained(tiny_segmenter).eval()
    processor = AutoImageProcessor.from_pretrained(tiny_segmenter)
    with torch.no_grad():
        outputs = model(**processor(images=[picture], return_tensors="pt"))
    scores = outputs.class_queries_logits[0].softmax(1)[:, :-1]  # queries, classes
    names = {COCO[index % len(COCO)] for index in scores.flatten().topk(len(scores)).indices.tolist()}
    for detection in found:
        assert detection.name in names
        assert 0.05 <= detection.score <= scores[:, COCO.index(detection.name)].max() + 1e-6  # class times mask score
        assert detection.mask is not None
        assert detection.mask.shape == (90, 120)
        x0, y0, x1, y1 = map(int, detection.box)
        assert detection.mask[y0:y1, x0:x1].sum() == detection.mask.sum()
        edges = (detection.mask[y0], detection.mask[y1 - 1], detection.mask[:, x0], detection.mask[:, x1 - 1])
        assert all(edge.any() for edge in edges)


def test_low_scores_give_no_detections(tiny_segmenter: Path) -> None:
    network = pretrained.load("object_detector/mask2former", file=tiny_segmenter)
    torch.nn.init.zeros_(network.model.class_predictor.weight)
    assert network.detect(np.zeros((40, 50, 3), dtype=np.uint8)) == []


def test_rejects_models_without_the_80_coco_classes(tiny_segmenter: Path, tmp_path: Path) -> None:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

    assert len(set(COCO)) == 80
    config = Mask2FormerConfig.from_pretrained(tiny_segmenter)
    config.num_labels = 3
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path / "three")
    Mask2FormerImageProcessor().save_pretrained(tmp_path / "three")
    with pytest.raises(ConfigError, match="knows 3 classes; COCO's 80"):
        pretrained.load("object_detector/mask2former", file=tmp_path / "three")
