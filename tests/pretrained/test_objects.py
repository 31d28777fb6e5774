"""A tiny Mask2Former of random weights, saved and read back through the registry."""

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from imtok import pretrained
from imtok.config import ConfigError
from imtok.pretrained.objects import COCO


def test_objects_are_those_of_the_most_certain_queries(tiny_segmenter: Path) -> None:
    from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

    network = pretrained.load("object_detector/mask2former", file=tiny_segmenter)
    picture = np.ascontiguousarray(data.astronaut()[:90, :120])
    found = network.detect(picture)
    assert found
    model = Mask2FormerForUniversalSegmentation.from_pretrained(tiny_segmenter).eval()
    processor = AutoImageProcessor.from_pretrained(tiny_segmenter)
    with torch.no_grad():
        said = model(**processor(images=[picture], return_tensors="pt"))
    likely = said.class_queries_logits[0].softmax(1)[:, :-1]  # queries, classes
    names = {COCO[index % len(COCO)] for index in likely.flatten().topk(len(likely)).indices.tolist()}
    for one in found:
        assert one.name in names
        assert 0.05 <= one.score <= likely[:, COCO.index(one.name)].max() + 1e-6  # times how certain the mask is
        assert one.mask is not None
        assert one.mask.shape == (90, 120)
        x0, y0, x1, y1 = map(int, one.box)
        assert one.mask[y0:y1, x0:x1].sum() == one.mask.sum()
        rims = (one.mask[y0], one.mask[y1 - 1], one.mask[:, x0], one.mask[:, x1 - 1])
        assert all(rim.any() for rim in rims)


def test_nothing_is_found_where_nothing_is_certain(tiny_segmenter: Path) -> None:
    network = pretrained.load("object_detector/mask2former", file=tiny_segmenter)
    torch.nn.init.zeros_(network.model.class_predictor.weight)
    assert network.detect(np.zeros((40, 50, 3), dtype=np.uint8)) == []


def test_coco_s_classes_are_wanted(tiny_segmenter: Path, tmp_path: Path) -> None:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

    assert len(set(COCO)) == 80
    config = Mask2FormerConfig.from_pretrained(tiny_segmenter)
    config.num_labels = 3
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path / "three")
    Mask2FormerImageProcessor().save_pretrained(tmp_path / "three")
    with pytest.raises(ConfigError, match="knows 3 classes; COCO's 80"):
        pretrained.load("object_detector/mask2former", file=tmp_path / "three")
