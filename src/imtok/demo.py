"""Pictures that come with installed packages, and signs, through every shipped tokenizer: can one still read them?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from imtok import pretrained
from imtok.config import ConfigError
from imtok.data.annotate import FACE_DETECTOR, TEXT_DETECTOR, Annotator
from imtok.data.pictures import decode, encode
from imtok.data.sample import Sample
from imtok.data.synthetic import SyntheticPictures
from imtok.evaluation.faces import FaceJudge, face_similarity
from imtok.evaluation.metrics import bits_per_pixel, psnr, ssim
from imtok.evaluation.reconstruct import reconstruct_picture
from imtok.evaluation.text import ReadWord, TextJudge, read_words, same_letters
from imtok.tokenizers import Tokenizer, load, shipped

_PHOTOS = ("astronaut", "chelsea", "coffee")
_PHOTO_SIDE = 384
_PAGE_ENLARGEMENT = 3
"""The page's letters are 10 pixels high; a small tokenizer sees nothing below 24."""


@dataclass(frozen=True)
class Scores:
    """What came of the pictures of one kind; means over pictures."""

    tokenizer: str
    kind: str
    pictures: int
    bits_per_pixel: float
    psnr: float
    ssim: float
    words: list[ReadWord]
    faces: list[float]

    def readable(self) -> list[ReadWord]:
        """Words that the judge reads right on the original; letters and digits count, case does not."""
        return [word for word in self.words if word.text and same_letters(word.text, word.original)]

    def still_read(self) -> list[ReadWord]:
        """Those of them that it also reads right on the reconstruction."""
        return [word for word in self.readable() if same_letters(word.text, word.reconstruction)]


def demo(out: Path = Path("out/demo"), signs: int = 48) -> list[Scores]:
    """Send the demo's pictures through every shipped tokenizer, and print a table.

    The words are read by EasyOCR's recognizer and the faces compared by dlib's network; no shipped tokenizer was
    trained with either.

    Args:
        out: folder for the pictures, original beside reconstruction.
        signs: how many rendered signs, with words and typefaces that are on no sign of the training split.

    Raises:
        ConfigError: no tokenizer is shipped.
        MissingWeights: a judge or detector is not here.
    """
    if not shipped():
        raise ConfigError("no trained tokenizer comes with this imtok; train one and use imtok reconstruct")
    judge, face_judge = pretrained.load("text_judge/easyocr"), pretrained.load("face_judge/dlib")
    groups = {"photos": bundled_photos(), "page of text": [bundled_page()], "signs": rendered_signs(signs)}
    scores = []
    for name in shipped():
        tokenizer = load(name)
        for kind, samples in groups.items():
            folder = out / name / kind.replace(" ", "-")
            scores.append(score(name, tokenizer, kind, samples, judge, face_judge, folder))
    print(table(scores))
    print(f"\n{first_words(scores)}\n\nPictures, original beside reconstruction: {out}")
    return scores


def bundled_photos() -> list[Sample]:
    """Photographs that scikit-image brings along, with the faces found in them."""
    from skimage import data

    annotator = Annotator(face_detector=pretrained.load(FACE_DETECTOR))
    photos = [Image.fromarray(getattr(data, name)()) for name in _PHOTOS]
    for photo in photos:
        photo.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE), Image.Resampling.LANCZOS)
    return [_sample(name, np.asarray(photo), annotator) for name, photo in zip(_PHOTOS, photos, strict=True)]


def bundled_page() -> Sample:
    """A scanned page that scikit-image brings along, enlarged, with the words found in it."""
    from skimage import data

    page = Image.fromarray(data.page()).convert("RGB")
    page = page.resize((page.width * _PAGE_ENLARGEMENT, page.height * _PAGE_ENLARGEMENT), Image.Resampling.BICUBIC)
    return _sample("page", np.asarray(page), Annotator(text_detector=pretrained.load(TEXT_DETECTOR)))


def rendered_signs(count: int) -> Sequence[Sample]:
    """Signs with exact word boxes."""
    return list(SyntheticPictures(count=count, seed=2026, size=128, split="test"))


def score(
    name: str,
    tokenizer: Tokenizer,
    kind: str,
    samples: Sequence[Sample],
    judge: TextJudge,
    face_judge: FaceJudge,
    folder: Path,
) -> Scores:
    """Reconstruct, measure, and write every picture beside its reconstruction."""
    folder.mkdir(parents=True, exist_ok=True)
    words, faces, numbers = [], [], []
    for sample in samples:
        picture = decode(sample.image, sample.path)
        drawn = reconstruct_picture(tokenizer, picture)
        before, after = (torch.from_numpy(np.array(p)).movedim(-1, 0)[None] for p in (picture, drawn))
        numbers.append((psnr(before, after).item(), ssim(before, after).item(), _rate(tokenizer, picture)))
        words += read_words(judge, picture, drawn, sample.words or [])
        faces += face_similarity(face_judge, picture, drawn, sample.faces or []).tolist()
        (folder / f"{Path(sample.path).stem}.png").write_bytes(encode(np.concatenate([picture, drawn], axis=1)))
    psnrs, ssims, rates = zip(*numbers, strict=True)
    return Scores(name, kind, len(samples), fmean(rates), fmean(psnrs), fmean(ssims), words, faces)


def table(scores: Sequence[Scores]) -> str:
    """The scores as a Markdown table."""
    head = ("tokenizer", "pictures", "bits per pixel", "PSNR", "SSIM", "words still read", "face similarity")
    rows = [
        (
            row.tokenizer,
            f"{row.pictures} {row.kind}",
            f"{row.bits_per_pixel:.4f}",
            f"{row.psnr:.2f}",
            f"{row.ssim:.3f}",
            f"{len(row.still_read())} of {len(row.readable())}" if row.words else "",
            f"{fmean(row.faces):.2f} ({len(row.faces)})" if row.faces else "",
        )
        for row in scores
    ]
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    lines = [head, tuple("-" * width for width in widths), *rows]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def first_words(scores: Sequence[Scores], count: int = 12) -> str:
    """What the judge read on the first signs, before and after."""
    lines = []
    for row in scores:
        if row.words:
            read = ", ".join(f"{word.original or '-'} → {word.reconstruction or '-'}" for word in row.words[:count])
            lines.append(f"{row.tokenizer}, {row.kind}, read before → after: {read}")
    return "\n".join(lines)


def _rate(tokenizer: Tokenizer, picture: UInt8[np.ndarray, "height width 3"]) -> float:
    height, width = picture.shape[:2]
    factor = tokenizer.downsample_factor
    return bits_per_pixel(-(-height // factor) * -(-width // factor), tokenizer.bits_per_token, height, width)


def _sample(name: str, pixels: UInt8[np.ndarray, "height width 3"], annotator: Annotator) -> Sample:
    height, width = pixels.shape[:2]
    return annotator.annotate(Sample(image=encode(pixels), path=name, width=width, height=height), pixels)
