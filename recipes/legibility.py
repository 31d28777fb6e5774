"""Legibility of generated, rendered and reconstructed signs to a text recognizer: shared by the recipes."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from nano_data import plain_signs

from imtok import pretrained
from imtok.checkpoints import write_text
from imtok.data.annotate import TEXT_DETECTOR
from imtok.data.pictures import decode, encode, to_uint8
from imtok.data.plain_signs import EXAMPLE, PlainSplit, prompt
from imtok.data.sample import Sample
from imtok.data.unseen_captions import FOLDER, UnseenCaptions
from imtok.data.vocabulary import words_by_label
from imtok.evaluation.generated import evaluate_generated
from imtok.evaluation.generated_metrics import STAND_IN
from imtok.evaluation.meters import make_items
from imtok.evaluation.reconstructors import open_reconstructor
from imtok.evaluation.rendered import read_picture
from imtok.evaluation.statistics import Interval, Items, interval, paired_difference
from imtok.evaluation.text import TEXT_JUDGE, normalized_edit_similarity
from imtok.generators.catalog import load, weights_hash
from imtok.generators.generate import generate
from imtok.generators.pipeline import ImageGenerator

SPLITS: tuple[PlainSplit, ...] = ("combinations", "words")
PROMPTS = 100
"""Number of prompts of each split."""
SHOWPIECE = prompt("red", EXAMPLE[1])
SHOWPIECE_SEEDS = 10
METRICS = ("rendered_text_ned", "rendered_word_accuracy", "rendered_word_accuracy_alnum")

Item = TypeVar("Item")
Readings = dict[str, Items]
"""The score of each picture's word, by metric."""
Prompts = list[tuple[str, str]]
"""Pairs of a prompt and the word that it asks for."""


def check_judges() -> None:
    """Raise an error before the training if the networks that read words or measure distances are not available."""
    for name in (TEXT_DETECTOR, TEXT_JUDGE, STAND_IN):
        pretrained.load(name)


def unseen_signs(split: PlainSplit, side: int = 128) -> list[Sample]:
    """Return held-out signs, no two of them with the same prompt."""
    by_prompt: dict[str, Sample] = {}
    for sign in plain_signs(10 * PROMPTS, seed=1, size=side, split=split):
        by_prompt.setdefault(sign.captions[0], sign)
        if len(by_prompt) == PROMPTS:
            break
    return list(by_prompt.values())


def read_originals(out: Path, side: int) -> dict[str, Readings]:
    """Return the scores of the rendered signs themselves."""
    return {split: _read(rendered(unseen_signs(split, side), out / split), split) for split in SPLITS}


def rendered(signs: Sequence[Sample], out: Path) -> Path:
    """Write the rendered signs as pictures in `out`; even on these, a text recognizer does not read all words."""
    return _write_missing(signs, out, "rendered", lambda sign: sign.image)


def read_reconstructed(tokenizer: str, out: Path, side: int) -> dict[str, Readings]:
    """Return the scores of a tokenizer's reconstructions of the same signs."""
    return {split: _read(reconstructed(tokenizer, unseen_signs(split, side), out / split), split) for split in SPLITS}


def reconstructed(tokenizer: str, signs: Sequence[Sample], out: Path) -> Path:
    """Write reconstructions of signs as pictures in `out`; a text-conditioned tokenizer is given the captions."""
    reconstructor = open_reconstructor(tokenizer)

    def reconstruct(sign: Sample) -> bytes:
        return encode(reconstructor.reconstruct([decode(sign.image, sign.path)], [sign])[0].picture)

    return _write_missing(signs, out, str(reconstructor.sha256), reconstruct)


def read_generated(run: Path, out: Path) -> dict[str, Readings]:
    """Return the scores of a generator's samples for the prompts of the same signs."""
    return {split: read_drawn(str(run), out / split, prompts_for(unseen_signs(split))) for split in SPLITS}


def read_drawn(generator: str, out: Path, prompts: Prompts, **sampling: Any) -> Readings:
    """Return the scores of a generator's samples, one for each prompt."""
    generate(generator, out, prompts=[prompt for prompt, _ in prompts], **sampling)
    return read_signs(out, [word for _, word in prompts])


def read_signs(folder: Path, words: Sequence[str]) -> Readings:
    """Score a folder's pictures, the n-th of which should show the n-th word; equal words form one group."""
    scores = folder.with_name(f"{folder.name}-scores")
    scores.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"file": f"{index:05d}.png", "text": word}) for index, word in enumerate(words)]
    write_text(scores / "words.jsonl", "\n".join(rows) + "\n")
    found = evaluate_generated(folder, scores, metrics=METRICS, words=str(scores / "words.jsonl"))
    for reason in found.failed.values():
        raise SystemExit(reason)
    items = [json.loads(line) for line in (scores / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    items.sort(key=lambda item: item["path"])
    values = {
        "rendered_text_ned": [item["ned"] for item in items],
        "rendered_word_accuracy": [float(all(item["found"])) for item in items],
        "rendered_word_accuracy_alnum": [float(all(item["found_alnum"])) for item in items],
    }
    groups = [words.index(item["text"]) for item in items]
    return {metric: make_items(value, groups) for metric, value in values.items()}


def prompts_for(signs: Iterable[Sample]) -> Prompts:
    """Return the prompts of signs, with the words on them."""
    return [(sign.captions[0], sign.words[0].text or "") for sign in signs if sign.words]


def read_with_wrong_captions(run: Path, out: Path) -> dict[str, Readings]:
    """Return the scores of a control: the decoder is given each prompt with tokens sampled for the previous one."""
    pipeline = load(str(run))
    for split in SPLITS:
        prompts = [sign.captions[0] for sign in unseen_signs(split)]
        others = [prompts[-1], *prompts[:-1]]

        sample = partial(_sample_with_wrong_caption, pipeline, others, prompts)
        _write_missing(range(len(prompts)), out / split, f"{weights_hash(str(run))} {pipeline.sampling}", sample)
    return {split: _read(out / split, split) for split in SPLITS}


def read_showpiece(run: Path, out: Path) -> str:
    """Sample one prompt with several seeds and return a line on how often its word is read."""
    accuracy = read_drawn(str(run), out, [(SHOWPIECE, EXAMPLE[1])] * SHOWPIECE_SEEDS)["rendered_word_accuracy"]
    return f"{SHOWPIECE!r}, which the training has too: read in {accuracy.values.sum():.0f} of {SHOWPIECE_SEEDS} seeds"


def class_consistency(folder: Path, labels: Sequence[str], captions: Sequence[str | None] | None = None) -> str:
    """Return the share of a folder's pictures that show a word of the requested kind, with its interval.

    Args:
        folder: folder of the pictures.
        labels: requested kinds of words, in the order of the file names.
        captions: captions that the tokenizer was conditioned on, if it was; pictures with the same caption show the
            same word and form one group.
    """
    detector, judge = pretrained.load(TEXT_DETECTOR), pretrained.load(TEXT_JUDGE)
    pictures = (decode(file.read_bytes(), str(file)) for file in sorted(folder.glob("*.png")))
    read = [kinds_of(read_picture(detector, judge, picture)) for picture in pictures]
    correct = [float(label in kinds) for kinds, label in zip(read, labels, strict=True)]
    groups = list(range(len(correct))) if captions is None else [captions.index(caption) for caption in captions]
    return _show(interval(make_items(correct, groups)))


def samples_with_wrong_captions(run: Path, labels: Sequence[str], **sampling: Any) -> Path:
    """Sample the control for classes: the decoder is given a caption of the label, with latents of another class."""
    pipeline, classes = load(str(run)), list(dict.fromkeys(labels))
    pipeline = dataclasses.replace(pipeline, sampling=pipeline.settings(**sampling))
    others = [classes[(classes.index(label) + 1) % len(classes)] for label in labels]
    source, sample = (
        f"{weights_hash(str(run))} {pipeline.sampling}",
        partial(_sample_with_wrong_caption, pipeline, others, labels),
    )
    return _write_missing(range(len(labels)), run.with_name(f"{run.name}-misled"), source, sample)


def decoder_captions(run: Path, labels: Sequence[str]) -> list[str]:
    """Return the unseen captions that a text-conditioned tokenizer is given for a run's samples, one for each label."""
    unseen = UnseenCaptions(run / FOLDER)
    return [unseen.draw(label, seed) for seed, label in enumerate(labels)]


def _sample_with_wrong_caption(
    pipeline: ImageGenerator, sampled_for: Sequence[str], decoded_for: Sequence[str], index: int
) -> bytes:
    """Return a picture whose tokens are sampled for one condition, while the tokenizer is given another."""
    tokens = pipeline.generator.sample([sampled_for[index]], [index], pipeline.sampling)
    return encode(to_uint8(pipeline.decode(tokens, pipeline.decoder_text([decoded_for[index]], [index])))[0])


def kinds_of(text: str) -> set[str]:
    """Return the kinds of words that a text may be, by its form or else by the nearest words of the vocabulary."""
    forms = {"price": r"[$£€].+", "time": r"\d{1,2}[:.]\d\d", "number": r"\d+", "plate": r"[A-Z]{1,3}\d{1,3}"}
    if found := {kind for kind, form in forms.items() if re.fullmatch(form, text)}:
        return found
    similarities = [
        (normalized_edit_similarity(word, text.lower()), kind)
        for kind, words in words_by_label().items()
        for word in words
    ]
    nearest = max(similarity for similarity, _ in similarities)
    return {kind for similarity, kind in similarities if similarity == nearest > 0}


def table(readings: Mapping[str, Mapping[str, Readings]], pairs: Sequence[tuple[str, str]] = ()) -> str:
    """Return a table of all scores with intervals, then of the paired differences of `pairs`."""
    lines = [["", "prompts", "NED", "words", "words, letters alone"], ["---"] * 5]
    for name, splits in readings.items():
        lines += [
            [name, split, *(_show(interval(found[metric])) for metric in METRICS)] for split, found in splits.items()
        ]
    for name, other in pairs:
        for split in SPLITS:
            both = [(readings[name][split][metric], readings[other][split][metric]) for metric in METRICS]
            lines.append([f"{name} - {other}", split, *(_show(paired_difference(*pair), "+") for pair in both)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _show(found: Interval, sign: str = "") -> str:
    return f"{found.value:{sign}.3f} ({found.low:{sign}.3f} to {found.high:{sign}.3f})"


def _write_missing(items: Sequence[Item], folder: Path, source: str, picture: Callable[[Item], bytes]) -> Path:
    """Write a picture of each item; existing files are kept if the same `source` has made them."""
    note = folder / "made-by.txt"
    if not note.exists() or note.read_text(encoding="utf-8") != source:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        note.write_text(source, encoding="utf-8")
    for index, item in enumerate(items):
        if not (file := folder / f"{index:05d}.png").exists():
            unfinished = file.with_suffix(".partial")
            unfinished.write_bytes(picture(item))
            unfinished.replace(file)
    return folder


def _read(folder: Path, split: PlainSplit) -> Readings:
    return read_signs(folder, [word for _, word in prompts_for(unseen_signs(split))])
