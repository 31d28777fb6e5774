"""Close-ups of words and faces: squares in which one of them is large enough for a small tokenizer, for evaluation."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

import numpy as np

from imtok.data.pictures import decode_sample, encode
from imtok.data.sample import Face, Sample, TextRegion
from imtok.data.transforms import CropConfig, zoom_targets


def close_ups(
    sample: Sample, config: CropConfig, most: int, wanted: Callable[[TextRegion | Face], bool] = lambda region: True
) -> Iterator[Sample]:
    """Squares of a picture, each around one word or face, which is the only one that it lists.

    Size and place of a square are drawn at random, from the picture's path alone: the same picture gives the same
    squares. The training crops of the same config are drawn likewise.

    Args:
        sample: a picture with words or faces.
        config: of which the resolution, the wanted sizes and the greatest enlargement are used.
        most: squares; of more, so many are drawn at random.
        wanted: which words and faces are worth a square.

    Raises:
        PictureError: the picture cannot be read.
    """
    targets = [target for target in zoom_targets(sample, config) if wanted(target.region)]
    if not targets:
        return
    digest = hashlib.sha256(sample.path.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    picture, stem = decode_sample(sample), PurePosixPath(sample.path).with_suffix("")
    for index in sorted(rng.permutation(len(targets))[:most]):
        crop, region = targets[index].draw_crop(rng), targets[index].region
        words = list(crop.words([region])) if isinstance(region, TextRegion) else None
        faces = list(crop.faces([region])) if isinstance(region, Face) else None
        if not (words or faces):  # a face whose landmarks reach beyond its box, and beyond the crop
            continue
        yield Sample(
            image=encode(crop.pixels(picture)),
            path=f"{stem}-{index}.png",
            width=config.resolution,
            height=config.resolution,
            words=words,
            faces=faces,
            captions=sample.captions,
            label=sample.label,
            source=sample.source,
            cluster=sample.cluster or sample.path,
        )
