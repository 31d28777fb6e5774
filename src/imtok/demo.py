"""Pictures that come with installed packages, and signs, through every shipped tokenizer: can one still read them?

Those that turn a whole picture into a few tokens, and may hear its caption, see small signs with captions instead.
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
"""The page's letters are 10 pixels high; a small tokenizer sees nothing below 24."""
_METRICS = ("bits_per_pixel", "psnr", "text_accuracy", "text_ned", "text_accuracy_alnum", "face_similarity")
_CAPTIONED_WORDS = ("shop", "animal", "food")
_CAPTIONED_METRICS = ("bits_per_pixel_with_caption", "bits_per_pixel", "psnr", "text_accuracy", "text_ned")


def demo(out: Path = Path("out/demo"), signs: int = 48) -> list[Evaluation]:
    """Send the demo's pictures through every shipped tokenizer, print tables, and write reports.

    The words are read by EasyOCR's recognizer and the faces compared by dlib's network; no shipped tokenizer was
    trained with either. Tokenizers that hear captions are also told those of other signs.

    Args:
        out: folder for `report.html`, `metrics.json` and `items.jsonl`, and for the same three in `captions/`.
        signs: how many rendered signs of each kind; none is of the training splits.

    Returns:
        One evaluation of the tokenizers with a grid of tokens, and one of the others, where there are any.

    Raises:
        ConfigError: no tokenizer is shipped, no signs are wanted, or scikit-image is not here.
        MissingWeights: a detector is not here.
    """
    if signs < 1:
        raise ConfigError(f"signs = {signs} must be at least 1")
    if not shipped():
        raise ConfigError("no trained tokenizer comes with this imtok; train one and use imtok evaluate")
    on_grid = {name: load(name).tokens_on_grid for name in sorted(shipped(), key=_plain_first)}
    found = []
    if grids := [name for name in on_grid if on_grid[name]]:
        pictures: dict[str, Dataset] = {
            "signs": SyntheticPictures(signs, seed=2026, size=128, split="test"),
            "page of text": InMemoryDataset([bundled_page()]),
            "photos": InMemoryDataset(bundled_photos()),
        }
        found.append(evaluate(grids, pictures, out, metrics=_METRICS, checks=False))
        print(f"{markdown_table(found[-1].results)}\n\nPictures, words and faces side by side: {out / 'report.html'}")
    if others := [name for name in on_grid if not on_grid[name]]:
        small = partial(PlainSigns, signs, seed=2026, size=64, labels=_CAPTIONED_WORDS, steady=True)
        captioned: dict[str, Dataset] = {
            "signs of known words": small(split="combinations"),
            "signs of new words": small(split="words"),
        }
        place = out / "captions"
        heard = evaluate(others, captioned, place, metrics=_CAPTIONED_METRICS, checks=False, wrong_captions=True)
        found.append(heard)
        print(f"\n{markdown_table(heard.results)}\n\nWith right and wrong captions: {place / 'report.html'}")
    return found


def _plain_first(name: str) -> tuple[bool, str]:
    """What the others are compared with leads: the VQGAN, and the baseline that hears of no caption."""
    return not name.startswith(("vqgan", "baseline")), name


def bundled_photos() -> list[Sample]:
    """Photographs that scikit-image brings along, with the faces found in them."""
    annotator = Annotator(face_detector=pretrained.load(FACE_DETECTOR))
    photos = [_bundled(name) for name in _PHOTOS]
    for photo in photos:
        photo.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE), Image.Resampling.LANCZOS)
    return [_sample(name, np.asarray(photo), annotator) for name, photo in zip(_PHOTOS, photos, strict=True)]


def bundled_page() -> Sample:
    """A scanned page that scikit-image brings along, enlarged, with the words found in it."""
    page = _bundled("page").convert("RGB")
    page = page.resize((page.width * _PAGE_ENLARGEMENT, page.height * _PAGE_ENLARGEMENT), Image.Resampling.BICUBIC)
    return _sample("page", np.asarray(page), Annotator(text_detector=pretrained.load(TEXT_DETECTOR)))


def _bundled(name: str) -> Image.Image:
    try:
        from skimage import data
    except ImportError:
        raise ConfigError("imtok demo: its pictures come with scikit-image; `pip install 'imtok[networks]'`") from None
    return Image.fromarray(getattr(data, name)())


def _sample(name: str, pixels: UInt8[np.ndarray, "height width 3"], annotator: Annotator) -> Sample:
    height, width = pixels.shape[:2]
    return annotator.annotate(Sample(image=encode(pixels), path=name, width=width, height=height), pixels)
