"""Offline annotation of pictures with words, faces and captions, written as shards; interrupted runs resume."""

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
"""Number of consecutive pictures on which a network fails before the cause is taken to be the machine."""
TEXT_DETECTOR = "text_detector/ppocrv6"
FACE_DETECTOR = "face_detector/mtcnn"


@runtime_checkable
class TextDetector(Protocol):
    """Detects lines of text, split into words."""

    def detect(self, image: UInt8[np.ndarray, "h w 3"]) -> Sequence[Any]:
        """Return lines with `words`; a word has `quad` (4, 2), `text` and `score`."""
        ...


@runtime_checkable
class FaceDetector(Protocol):
    """Detects faces and their five landmarks."""

    def detect(self, image: UInt8[np.ndarray, "h w 3"]) -> Any:
        """Return `boxes` (n, 4), `landmarks` (n, 5, 2) in the order of `LANDMARKS`, and `scores` (n,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Annotator:
    """The networks that annotate each picture; where one is None, the annotations of the source are kept.

    Attributes:
        text_detector: replaces the words.
        face_detector: replaces the faces.
        captioner: sets the captions; templates and models leave pictures that have a caption unchanged.
        min_text_score: words with a lower score are dropped.
        min_face_score: faces with a lower score are dropped.
    """

    text_detector: TextDetector | None = None
    face_detector: FaceDetector | None = None
    captioner: Captioner | None = None
    min_text_score: float = 0.5
    min_face_score: float = 0.9

    def annotate(self, sample: Sample, picture: UInt8[np.ndarray, "h w 3"]) -> Sample:
        """Return the sample with the annotations computed from its pixels.

        Raises:
            NetworkFailed: a detector or the captioner failed.
            DataError: a detector or the captioner ran out of memory.
        """
        if self.text_detector is not None:
            lines = _run("text detector", self.text_detector.detect, sample, picture)
            sample = replace(sample, words=self._words(lines, sample))
        if self.face_detector is not None:
            found = _run("face detector", self.face_detector.detect, sample, picture)
            sample = replace(sample, faces=self._faces(found, sample))
        if self.captioner is not None:
            sample = replace(sample, captions=_run("captioner", self.captioner, sample, sample))
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
    """A detector or the captioner failed on a picture, because of either the picture or the machine."""


def _run(kind: str, network: Callable[[Any], Any], sample: Sample, network_input: Any) -> Any:
    try:
        return network(network_input)
    except InputError:
        raise
    except Exception as error:  # any error of the runtime: a single picture must not end a long run
        if is_out_of_memory(error):
            raise DataError(f"{sample.path}: the {kind} ran out of memory ({first_line(error)})") from error
        raise NetworkFailed(f"{sample.path}: the {kind} failed ({first_line(error)})") from error


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
    """Write the pictures of a source as shards, annotated with detected words and faces and with captions.

    If interrupted at any point, the same call resumes after the last finished shard and produces the same files; until
    the first shard is finished, the settings may still be changed. Unreadable pictures are left out and listed in
    `skipped.jsonl`; a failure of the machine rather than of a picture stops the run.

    Args:
        source: a folder of pictures, a JSONL or CSV file next to its pictures, WebDataset tars, or Parquet, local or at
            an fsspec address.
        out: folder for the shards, `skipped.jsonl` and `progress.json`.
        text: detect words with `text_detector/ppocrv6`; otherwise the source's words are kept.
        faces: detect faces and landmarks with `face_detector/mtcnn`; otherwise the source's faces are kept.
        captions: a JSONL or CSV file with an image and a caption column, a template like "a photo of a {label}", or the
            folder of a vision-language model (FOLDER:25 for captions of up to 25 words).
        keep: rules that a picture must fulfil to be written, all of them: text, face, min_word_height=N, min_face=N,
            min_side=N, or alternatives joined by |, such as "text|face" "min_side=256".
        min_text_score: words with a lower recognition score are dropped.
        min_face_score: faces with a lower detection score are dropped.
        samples_per_shard: pictures per shard; a resumed run repeats all work since the last finished shard, including
            the pictures that `keep` dropped.

    Returns:
        The final counts.

    Raises:
        DataError: the source cannot be opened, a number is out of range, or `out` was begun with other settings.
        MissingWeights: the weights of a detector are not installed.
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
    if captions is not None and (captions_hash := captions_fingerprint(captions)):
        settings["captions_fingerprint"] = captions_hash
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
    """Annotate like `annotate`, with custom detectors, captioner and rules.

    Args:
        source: the pictures; see `fill`.
        out: folder for the shards, `skipped.jsonl` and `progress.json`.
        annotator: the networks that annotate the pictures.
        rules: which pictures are kept.
        settings: values that identify the run; see `fill`.
        samples_per_shard: see `annotate`.

    Raises:
        DataError: see `fill`; or the machine failed rather than a picture: out of memory, or `MAX_FAILURES` consecutive
            failures. The pictures of those failures are not recorded as done.
    """
    failures = 0

    def annotate_and_filter(sample: Sample) -> Sample | None:
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

    return fill(source, out, settings, samples_per_shard, annotate_and_filter)
