"""Offline annotation: pictures in, shards with words, faces and captions out; can be killed and resumed at any time."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from tqdm import tqdm

from imtok import pretrained
from imtok.config import FORMAT_VERSION, InputError, first_line
from imtok.data.addresses import join, read_json, read_text, write_text
from imtok.data.captions import Captioner, make_captioner
from imtok.data.filters import KeepRules
from imtok.data.pictures import decode_sample
from imtok.data.readers import open_source
from imtok.data.sample import DataError, Face, PictureError, Sample, Source, TextRegion, clip_box
from imtok.data.shards import ShardWriter, holds_shards

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
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise DataError(f"{sample.path}: the {whom} ran out of memory ({first_line(error)})") from error
    except Exception as error:  # one odd picture must not end a run of days, whatever the runtime raised
        raise NetworkFailed(f"{sample.path}: the {whom} failed ({first_line(error)})") from error


@dataclass(kw_only=True)
class Progress:
    """How far an annotation is; `progress.json` in its folder. Everything before `next_row` is done and on disk.

    Attributes:
        settings: what must be the same for a resumed run to give what an uninterrupted one gives.
        rows: pictures in the source.
        next_row: the first picture that no finished shard accounts for.
        shards: finished ones.
        kept: pictures in them.
        dropped: pictures that a keep rule turned away.
        skipped: unreadable pictures, listed in `skipped.jsonl`.
    """

    settings: dict[str, Any]
    rows: int
    next_row: int = 0
    shards: int = 0
    kept: int = 0
    dropped: int = 0
    skipped: int = 0
    format_version: int = FORMAT_VERSION

    def __str__(self) -> str:
        return (
            f"{self.next_row} of {self.rows} pictures: {self.kept} kept in {self.shards} shards, "
            f"{self.dropped} dropped by the rules, {self.skipped} unreadable (skipped.jsonl)"
        )


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
    }
    if not (0 <= min_text_score <= 1 and 0 <= min_face_score <= 1):
        raise DataError("min_text_score and min_face_score must be in [0, 1]")
    rules, pictures = KeepRules(keep), open_source(source)
    annotator = Annotator(
        text_detector=pretrained.load(TEXT_DETECTOR) if text else None,
        face_detector=pretrained.load(FACE_DETECTOR) if faces else None,
        captioner=make_captioner(captions) if captions is not None else None,
        min_text_score=min_text_score,
        min_face_score=min_face_score,
    )
    return annotate_source(pictures, out, annotator, rules, settings, samples_per_shard)


def annotate_source(
    source: Source,
    out: str,
    annotator: Annotator,
    rules: KeepRules,
    settings: dict[str, Any],
    samples_per_shard: int = 256,
) -> Progress:
    """The work of `annotate` with detectors, captioner and rules of one's own.

    Args:
        source: a PictureError on reading a row skips it.
        out: see `annotate`.
        annotator: see there.
        rules: see there.
        settings: JSON values that tell this annotation from others; a run is resumed only with the same.
        samples_per_shard: see `annotate`.

    Raises:
        DataError: torchrun started several of it, `out` was begun with other settings, not one picture could be read,
            or the machine rather than the pictures failed (no memory, `MAX_FAILURES` in a row); then none of those is
            taken for done.
    """
    check_alone(out)
    progress = _load_progress(out, settings, len(source))
    skipped = [entry for entry in _load_skipped(out) if entry["row"] < progress.next_row]
    first, failures = progress.next_row, 0
    with (
        ShardWriter(out, samples_per_shard, first_shard=progress.shards) as writer,
        tqdm(total=progress.rows, initial=first, unit=" pictures", disable=None) as bar,
    ):
        _save(out, progress, skipped, first, progress.shards)
        for row in range(first, progress.rows):
            try:
                sample, picture = _read(source, row)
                sample = annotator.annotate(sample, picture)
            except PictureError as error:
                skipped.append({"row": row, "reason": str(error)})
                failures += isinstance(error, NetworkFailed)
                if failures == MAX_FAILURES:
                    reason = f"{error}, as on {failures} pictures in a row; they will be looked at again"
                    raise DataError(reason) from error
            else:
                failures = 0
                if not rules(sample, picture):
                    progress.dropped += 1
                elif writer.write(sample):
                    _save(out, progress, skipped, row + 1, writer.finished_shards)
            bar.update()
            bar.set_postfix(skipped=len(skipped), refresh=False)
        writer.close()
        _save(out, progress, skipped, progress.rows, writer.finished_shards)
    if progress.rows and progress.skipped == progress.rows:
        raise DataError(f"none of {progress.rows} pictures could be annotated; first: {skipped[0]['reason']}")
    return progress


def check_finished(folder: str | PathLike[str]) -> None:
    """Whether all pictures are there, if `annotate` or `synthesize` has filled a folder of shards.

    Raises:
        DataError: it has not finished.
    """
    values = (read_json(join(folder, "progress.json")) if holds_shards(folder) else None) or {}
    done, rows = values.get("next_row", 0), values.get("rows", 0)
    if done < rows:
        raise DataError(f"{folder}: {done} of {rows} pictures are done; call what writes it again, so that it finishes")


def check_alone(out: str | PathLike[str]) -> None:
    """Whether this is the only process that writes somewhere.

    Raises:
        DataError: torchrun started several.
    """
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DataError(f"{out}: several processes would write the same files; call it once, without torchrun")


def _read(source: Source, row: int) -> tuple[Sample, UInt8[np.ndarray, "h w 3"]]:
    sample = source[row]
    return sample, decode_sample(sample)


def _load_progress(out: str, settings: dict[str, Any], rows: int) -> Progress:
    values = read_json(join(out, "progress.json"))
    if values is None:
        if holds_shards(out):
            raise DataError(f"{out}: holds shards of something else; name another folder")
        return Progress(settings=settings, rows=rows)
    if values.get("format_version") != FORMAT_VERSION or "settings" not in values:
        raise DataError(f"{out}: begun by another version of imtok; name another folder")
    progress = Progress(**values)
    changed = [name for name in settings if progress.settings.get(name) != settings[name]]
    if (changed or progress.rows != rows) and not (progress.shards or holds_shards(out)):  # nothing to be lost
        return Progress(settings=settings, rows=rows)
    if changed:
        name = changed[0]
        was, now = progress.settings.get(name), settings[name]
        raise DataError(f"{out}: begun with {name} = {was!r}, now it is {now!r}; name another folder")
    if progress.rows != rows:
        raise DataError(f"{out}: begun with {progress.rows} pictures, the source has {rows} now; name another folder")
    return progress


def _load_skipped(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (read_text(join(out, "skipped.jsonl")) or "").splitlines()]


def _save(out: str, progress: Progress, skipped: list[dict[str, Any]], next_row: int, shards: int) -> None:
    """Account for what is on disk; the shards and the list of skipped pictures come before the count of them."""
    progress.next_row, progress.shards = next_row, shards
    progress.skipped = len(skipped)
    progress.kept = next_row - progress.dropped - progress.skipped
    write_text(join(out, "skipped.jsonl"), "".join(json.dumps(entry) + "\n" for entry in skipped))
    write_text(join(out, "progress.json"), json.dumps(asdict(progress), indent=2) + "\n")
