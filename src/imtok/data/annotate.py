"""Offline annotation: pictures in, shards with words, faces and captions out; can be killed and resumed at any time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from imtok import pretrained
from imtok.config import InputError, first_line, is_out_of_memory
from imtok.data.captions import Captioner, captions_fingerprint, make_captioner
from imtok.data.filling import Progress, fill
from imtok.data.filters import KeepRules
from imtok.data.pictures import decode_sample
from imtok.data.readers import fingerprint, open_dataset
from imtok.data.sample import DataError, Dataset, Face, PictureError, Sample, TextRegion, clip_box

MAX_FAILURES = 16
"""Pictures in a row on which networks may fail; after so many it is not the pictures."""
TEXT_DETECTOR = "text_detector/ppocrv6"
FACE_DETECTOR = "face_detector/mtcnn"


@runtime_checkable
class TextDetector(Protocol):
    """Finds lines of text, split into words."""

    def detect(self, image: UInt8[np.ndarray, "h w 3"]) -> Sequence[Any]:
        """Lines with `words`; a word has `quad` (4, 2), `text` and `score`."""
        ...


@runtime_checkable
class FaceDetector(Protocol):
    """Finds faces and their five landmarks."""

    def detect(self, image: UInt8[np.ndarray, "h w 3"]) -> Any:
        """`boxes` (n, 4), `landmarks` (n, 5, 2) in the order of `LANDMARKS`, `scores` (n,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Annotator:
    """What is done to each picture; what is None is left as the source has it.

    Attributes:
        text_detector: replaces the words.
        face_detector: replaces the faces.
        captioner: has the last word on the captions; templates and models serve only pictures without one.
        min_text_score: words below it are dropped.
        min_face_score: faces below it are dropped.
    """

    text_detector: TextDetector | None = None
    face_detector: FaceDetector | None = None
    captioner: Captioner | None = None
    min_text_score: float = 0.5
    min_face_score: float = 0.9

    def annotate(self, sample: Sample, picture: UInt8[np.ndarray, "h w 3"]) -> Sample:
        """The sample with what was found in its pixels.

        Raises:
            NetworkFailed: a detector or the captioner failed on them.
            DataError: it ran out of memory.
        """
        if self.text_detector is not None:
            lines = _ask("text detector", self.text_detector.detect, sample, picture)
            sample = replace(sample, words=self._words(lines, sample))
        if self.face_detector is not None:
            found = _ask("face detector", self.face_detector.detect, sample, picture)
            sample = replace(sample, faces=self._faces(found, sample))
        if self.captioner is not None:
            sample = replace(sample, captions=_ask("captioner", self.captioner, sample, sample))
        return sample

    def _words(self, lines: Sequence[Any], sample: Sample) -> list[TextRegion]:
        words = []
        for word in (word for line in lines for word in line.words):
            quad = np.asarray(word.quad, dtype=np.float64)
            box = clip_box([*quad.min(0), *quad.max(0)], sample.width, sample.height)
            if box and word.text.strip() and word.score >= self.min_text_score:
                corners = tuple((float(x), float(y)) for x, y in quad)
                words.append(TextRegion(box=box, text=word.text.strip(), quad=corners, score=float(word.score)))
        return words

    def _faces(self, found: Any, sample: Sample) -> list[Face]:
        faces = []
        for bounds, landmarks, score in zip(found.boxes, found.landmarks, found.scores, strict=True):
            if (box := clip_box(bounds, sample.width, sample.height)) and score >= self.min_face_score:
                points = tuple((float(x), float(y)) for x, y in landmarks)
                faces.append(Face(box=box, landmarks=points, score=float(score)))
        return faces


class NetworkFailed(PictureError):
    """A detector or the captioner failed on a picture: because of the picture, or because the machine is ill."""


def _ask(whom: str, network: Callable[[Any], Any], sample: Sample, given: Any) -> Any:
    try:
        return network(given)
    except InputError:
        raise
    except Exception as error:  # one odd picture must not end a run of days, whatever the runtime raised
        if is_out_of_memory(error):
            raise DataError(f"{sample.path}: the {whom} ran out of memory ({first_line(error)})") from error
        raise NetworkFailed(f"{sample.path}: the {whom} failed ({first_line(error)})") from error


def annotate(
    source: str,
    out: str,
    *,
    text: bool = False,
    faces: bool = False,
    captions: str | None = None,
    keep: tuple[str, ...] = (),
    min_text_score: float = 0.5,
    min_face_score: float = 0.9,
    samples_per_shard: int = 256,
) -> Progress:
    """Write the pictures of a source as shards, with what detectors found in them.

    Killed at any moment and called again, it goes on after the last finished shard and ends with the same files; before
    the first one, it may also be called with other settings. Unreadable pictures are left out and listed in
    `skipped.jsonl`; when the machine fails rather than a picture, it stops.

    Args:
        source: a folder of pictures, a JSONL or CSV beside pictures, WebDataset tars, or Parquet, local or at an
            address of fsspec.
        out: folder for the shards, `skipped.jsonl` and `progress.json`.
        text: find words with `text_detector/ppocrv6`; otherwise the source's words stay.
        faces: find faces and landmarks with `face_detector/mtcnn`; otherwise the source's faces stay.
        captions: a JSONL or CSV with an image and a caption column, a template like "a photo of a {label}", or the
            folder of a vision-language model (FOLDER:25 for 25 words).
        keep: rules for what is written, which must all hold: text, face, min_word_height=N, min_face=N, min_side=N, or
            alternatives joined by |, such as "text|face" "min_side=256".
        min_text_score: words that the recognizer is less sure of are dropped.
        min_face_score: faces that the detector is less sure of are dropped.
        samples_per_shard: what is kept after the last full shard is done again after a kill, with all that `keep` has
            dropped since.

    Returns:
        The final counts.

    Raises:
        DataError: the source cannot be opened, nonsense numbers, or `out` was begun with other settings.
        MissingWeights: a detector is not here.
    """
    settings = {
        "source": source,
        "text": text,
        "faces": faces,
        "captions": captions,
        "keep": list(keep),
        "min_text_score": min_text_score,
        "min_face_score": min_face_score,
        "samples_per_shard": samples_per_shard,
        "fingerprint": fingerprint(source),
    }
    if captions is not None and (told := captions_fingerprint(captions)):
        settings["captions_fingerprint"] = told
    if not (0 <= min_text_score <= 1 and 0 <= min_face_score <= 1):
        raise DataError("min_text_score and min_face_score must be in [0, 1]")
    rules, pictures = KeepRules(keep), open_dataset(source)
    annotator = Annotator(
        text_detector=pretrained.load(TEXT_DETECTOR) if text else None,
        face_detector=pretrained.load(FACE_DETECTOR) if faces else None,
        captioner=make_captioner(captions) if captions is not None else None,
        min_text_score=min_text_score,
        min_face_score=min_face_score,
    )
    return annotate_source(pictures, out, annotator, rules, settings, samples_per_shard)


def annotate_source(
    source: Dataset,
    out: str,
    annotator: Annotator,
    rules: KeepRules,
    settings: dict[str, Any],
    samples_per_shard: int = 256,
) -> Progress:
    """The work of `annotate` with detectors, captioner and rules of one's own.

    Args:
        source: see `fill`, and for the rest `annotate`.
        out: likewise.
        annotator: looks at the pictures.
        rules: what is kept.
        settings: see `fill`.
        samples_per_shard: likewise.

    Raises:
        DataError: see `fill`; or the machine rather than the pictures failed (no memory, `MAX_FAILURES` in a row); then
            none of those is taken for done.
    """
    failures = 0

    def look(sample: Sample) -> Sample | None:
        nonlocal failures
        picture = decode_sample(sample)
        try:
            sample = annotator.annotate(sample, picture)
        except NetworkFailed as error:
            failures += 1
            if failures == MAX_FAILURES:
                reason = f"{error}, as on {failures} pictures in a row; they will be looked at again"
                raise DataError(reason) from error
            raise
        failures = 0
        return sample if rules(sample, picture) else None

    return fill(source, out, settings, samples_per_shard, look)
