"""Demo: evaluate every shipped tokenizer on pictures of installed packages and on rendered signs.

Tokenizers that encode a picture as a few tokens without a grid, some of them conditioned on captions, are evaluated on
small captioned signs instead.
"""

from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from imtok import pretrained
from imtok.config import ConfigError
from imtok.data.annotate import FACE_DETECTOR, TEXT_DETECTOR, Annotator
from imtok.data.pictures import encode
from imtok.data.plain_signs import PlainSigns
from imtok.data.sample import Dataset, InMemoryDataset, Sample
from imtok.data.synthetic import SyntheticPictures
from imtok.evaluation.evaluate import evaluate
from imtok.evaluation.results import Evaluation, markdown_table
from imtok.tokenizers import load, shipped

_PHOTOS = ("astronaut", "chelsea", "coffee")
_PHOTO_SIDE = 384
_PAGE_ENLARGEMENT = 3
"""Scale factor of the page, whose letters are 10 pixels high; small tokenizers cannot represent letters below 24."""
_METRICS = ("bits_per_pixel", "psnr", "text_accuracy", "text_ned", "text_accuracy_alnum", "face_similarity")
_CAPTIONED_WORDS = ("shop", "animal", "food")
_CAPTIONED_METRICS = ("bits_per_pixel_with_caption", "bits_per_pixel", "psnr", "text_accuracy", "text_ned")


def demo(out: Path = Path("out/demo"), signs: int = 48) -> list[Evaluation]:
    """Evaluate every shipped tokenizer on the demo's pictures, print tables, and write reports.

    EasyOCR's recognizer reads the words and dlib's network compares the faces; no shipped tokenizer was trained with
    either. Tokenizers that are conditioned on captions are also evaluated with the captions of other signs.

    Args:
        out: output folder for `report.html`, `metrics.json` and `items.jsonl`, and for the same three in `captions/`.
        signs: number of rendered signs of each kind; none is from the training splits.

    Returns:
        One evaluation of the tokenizers whose tokens form a grid, and one of all others; a group without tokenizers is
        left out.

    Raises:
        ConfigError: no tokenizer is shipped, `signs` is less than 1, or scikit-image is not installed.
        MissingWeights: a detector's weights are missing.
    """
    if signs < 1:
        raise ConfigError(f"signs = {signs} must be at least 1")
    if not shipped():
        raise ConfigError("no trained tokenizer comes with this imtok; train one and use imtok evaluate")
    on_grid = {name: load(name).tokens_on_grid for name in sorted(shipped(), key=_references_first)}
    results = []
    if grids := [name for name in on_grid if on_grid[name]]:
        pictures: dict[str, Dataset] = {
            "signs": SyntheticPictures(signs, seed=2026, size=128, split="test"),
            "page of text": InMemoryDataset([bundled_page()]),
            "photos": InMemoryDataset(bundled_photos()),
        }
        results.append(evaluate(grids, pictures, out, metrics=_METRICS, checks=False))
        print(f"{markdown_table(results[-1].results)}\n\nPictures, words and faces side by side: {out / 'report.html'}")
    if others := [name for name in on_grid if not on_grid[name]]:
        small = partial(PlainSigns, signs, seed=2026, size=64, labels=_CAPTIONED_WORDS, steady=True)
        captioned: dict[str, Dataset] = {
            "signs of known words": small(split="combinations"),
            "signs of new words": small(split="words"),
        }
        folder = out / "captions"
        evaluation = evaluate(others, captioned, folder, metrics=_CAPTIONED_METRICS, checks=False, wrong_captions=True)
        results.append(evaluation)
        print(f"\n{markdown_table(evaluation.results)}\n\nWith right and wrong captions: {folder / 'report.html'}")
    return results


def _references_first(name: str) -> tuple[bool, str]:
    """Sort key that puts the reference tokenizers first: the VQGAN, and the baseline without captions."""
    return not name.startswith(("vqgan", "baseline")), name


def bundled_photos() -> list[Sample]:
    """Return photographs bundled with scikit-image, with the faces detected in them."""
    annotator = Annotator(face_detector=pretrained.load(FACE_DETECTOR))
    photos = [_load_bundled(name) for name in _PHOTOS]
    for photo in photos:
        photo.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE), Image.Resampling.LANCZOS)
    return [_annotated_sample(name, np.asarray(photo), annotator) for name, photo in zip(_PHOTOS, photos, strict=True)]


def bundled_page() -> Sample:
    """Return a scanned page bundled with scikit-image, enlarged, with the words detected in it."""
    page = _load_bundled("page").convert("RGB")
    page = page.resize((page.width * _PAGE_ENLARGEMENT, page.height * _PAGE_ENLARGEMENT), Image.Resampling.BICUBIC)
    return _annotated_sample("page", np.asarray(page), Annotator(text_detector=pretrained.load(TEXT_DETECTOR)))


def _load_bundled(name: str) -> Image.Image:
    try:
        from skimage import data
    except ImportError:
        raise ConfigError("imtok demo: its pictures come with scikit-image; `pip install 'imtok[networks]'`") from None
    return Image.fromarray(getattr(data, name)())


def _annotated_sample(name: str, pixels: UInt8[np.ndarray, "height width 3"], annotator: Annotator) -> Sample:
    height, width = pixels.shape[:2]
    return annotator.annotate(Sample(image=encode(pixels), path=name, width=width, height=height), pixels)
