"""Close-ups for evaluation: square crops in which a word or face is large enough for a small tokenizer."""

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
    """Yield square crops of a picture, each around one word or face, which is the crop's only annotated region.

    Size and position of a crop have the same distribution as in training crops of the same config. The random seed is a
    hash of the picture's path: the same picture always gives the same crops.

    Args:
        sample: a picture with words or faces.
        config: only its resolution, region sizes (`word_height`, `face_size`) and `max_enlargement` are used.
        most: maximum number of crops; if there are more candidates, a random subset is taken.
        wanted: selects the words and faces to crop.

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
        if not (words or faces):  # a face with landmarks outside of its box and of the crop
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
