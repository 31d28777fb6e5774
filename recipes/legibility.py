"""What a judge reads in generated signs, and in the same signs rendered or reconstructed: shared by the recipes."""

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
"""Of each split."""
SHOWPIECE = prompt("red", EXAMPLE[1])
SHOWPIECE_SEEDS = 10
METRICS = ("rendered_text_ned", "rendered_word_accuracy", "rendered_word_accuracy_alnum")

Item = TypeVar("Item")
Readings = dict[str, Items]
"""How much of each picture's word was read, by metric."""
Prompts = list[tuple[str, str]]
"""Prompts, and the words that they ask for."""


def check_judges() -> None:
    """Stop now, not after hours, where the networks that read and that tell sets apart are not here."""
    for name in (TEXT_DETECTOR, TEXT_JUDGE, STAND_IN):
        pretrained.load(name)


def wanted(split: PlainSplit, side: int = 128) -> list[Sample]:
    """Signs that no training has seen, no two of one prompt."""
    found: dict[str, Sample] = {}
    for sign in plain_signs(10 * PROMPTS, seed=1, size=side, split=split):
        found.setdefault(sign.captions[0], sign)
        if len(found) == PROMPTS:
            break
    return list(found.values())


def read_originals(out: Path, side: int) -> dict[str, Readings]:
    """What is read on the rendered signs themselves."""
    return {split: _read(rendered(wanted(split, side), out / split), split) for split in SPLITS}


def rendered(signs: Sequence[Sample], out: Path) -> Path:
    """The signs themselves as pictures in OUT: no judge reads all words on these either."""
    return _written(signs, out, "rendered", lambda sign: sign.image)


def read_reconstructed(tokenizer: str, out: Path, side: int) -> dict[str, Readings]:
    """What is read on the same signs through a tokenizer and back."""
    return {split: _read(reconstructed(tokenizer, wanted(split, side), out / split), split) for split in SPLITS}


def reconstructed(tokenizer: str, signs: Sequence[Sample], out: Path) -> Path:
    """Signs through a tokenizer and back, as pictures in OUT; one that hears of captions is told them."""
    reconstructor = open_reconstructor(tokenizer)

    def through(sign: Sample) -> bytes:
        return encode(reconstructor.reconstruct([decode(sign.image, sign.path)], [sign])[0].picture)

    return _written(signs, out, str(reconstructor.sha256), through)


def read_generated(run: Path, out: Path) -> dict[str, Readings]:
    """What is read on pictures that a generator draws from the same signs' prompts."""
    return {split: read_drawn(str(run), out / split, asked(wanted(split))) for split in SPLITS}


def read_drawn(generator: str, out: Path, prompts: Prompts, **sampling: Any) -> Readings:
    """What is read on pictures that a generator draws from prompts, one of each."""
    generate(generator, out, prompts=[prompt for prompt, _ in prompts], **sampling)
    return _measured(out, [word for _, word in prompts])


def asked(signs: Iterable[Sample]) -> Prompts:
    """The prompts that ask for these signs."""
    return [(sign.captions[0], sign.words[0].text or "") for sign in signs if sign.words]


def read_misled(run: Path, out: Path) -> dict[str, Readings]:
    """The control of tokenizers that hear the prompt: they are told it, over what was drawn for the prompt before."""
    pipeline = load(str(run))
    for split in SPLITS:
        prompts = [sign.captions[0] for sign in wanted(split)]
        others = [prompts[-1], *prompts[:-1]]

        draw = partial(_misled, pipeline, others, prompts)
        _written(range(len(prompts)), out / split, f"{weights_hash(str(run))} {pipeline.sampling}", draw)
    return {split: _read(out / split, split) for split in SPLITS}


def read_showpiece(run: Path, out: Path) -> str:
    """One prompt, drawn with several seeds: how often its word is read."""
    found = read_drawn(str(run), out, [(SHOWPIECE, EXAMPLE[1])] * SHOWPIECE_SEEDS)["rendered_word_accuracy"]
    return f"{SHOWPIECE!r}, which the training has too: read in {found.values.sum():.0f} of {SHOWPIECE_SEEDS} seeds"


def class_consistency(folder: Path, labels: Sequence[str], told: Sequence[str | None] | None = None) -> str:
    """How many of a folder's pictures show a word of the kind that was asked for, in the order of their names.

    Args:
        folder: of the pictures.
        labels: the kinds.
        told: captions that the tokenizer heard, where it did: pictures of one caption show one word, and are one group.
    """
    detector, judge = pretrained.load(TEXT_DETECTOR), pretrained.load(TEXT_JUDGE)
    pictures = (decode(file.read_bytes(), str(file)) for file in sorted(folder.glob("*.png")))
    read = [kinds_of(read_picture(detector, judge, picture)) for picture in pictures]
    right = [float(label in kinds) for kinds, label in zip(read, labels, strict=True)]
    groups = list(range(len(right))) if told is None else [told.index(caption) for caption in told]
    return _show(interval(make_items(right, groups)))


def misled_samples(run: Path, labels: Sequence[str], **sampling: Any) -> Path:
    """`read_misled` for classes: told a caption of the label's, over latents that were drawn for another class."""
    pipeline, classes = load(str(run)), list(dict.fromkeys(labels))
    pipeline = dataclasses.replace(pipeline, sampling=pipeline.settings(**sampling))
    others = [classes[(classes.index(label) + 1) % len(classes)] for label in labels]
    by, draw = f"{weights_hash(str(run))} {pipeline.sampling}", partial(_misled, pipeline, others, labels)
    return _written(range(len(labels)), run.with_name(f"{run.name}-misled"), by, draw)


def captions_heard(run: Path, labels: Sequence[str]) -> list[str]:
    """What a tokenizer that hears captions is told of a run's samples of some classes, one of each in their order."""
    unseen = UnseenCaptions(run / FOLDER)
    return [unseen.draw(label, seed) for seed, label in enumerate(labels)]


def _misled(pipeline: ImageGenerator, drawn_for: Sequence[str], told: Sequence[str], index: int) -> bytes:
    """A picture whose tokens are drawn for one condition, while the tokenizer is told another."""
    tokens = pipeline.generator.sample([drawn_for[index]], [index], pipeline.sampling)
    return encode(to_uint8(pipeline.decode(tokens, pipeline.decoder_text([told[index]], [index])))[0])


def kinds_of(text: str) -> set[str]:
    """What kinds of word this may be, by its form or else by the vocabulary's nearest words; maybe none."""
    forms = {"price": r"[$£€].+", "time": r"\d{1,2}[:.]\d\d", "number": r"\d+", "plate": r"[A-Z]{1,3}\d{1,3}"}
    if found := {kind for kind, form in forms.items() if re.fullmatch(form, text)}:
        return found
    near = [
        (normalized_edit_similarity(word, text.lower()), kind)
        for kind, words in words_by_label().items()
        for word in words
    ]
    nearest = max(similarity for similarity, _ in near)
    return {kind for similarity, kind in near if similarity == nearest > 0}


def table(readings: Mapping[str, Mapping[str, Readings]], pairs: Sequence[tuple[str, str]] = ()) -> str:
    """All scores with intervals, then differences of pairs picture by picture."""
    lines = [["", "prompts", "NED", "words", "words, letters alone"], ["---"] * 5]
    for name, splits in readings.items():
        lines += [
            [name, split, *(_show(interval(found[metric])) for metric in METRICS)] for split, found in splits.items()
        ]
    for ours, theirs in pairs:
        for split in SPLITS:
            both = [(readings[ours][split][metric], readings[theirs][split][metric]) for metric in METRICS]
            lines.append([f"{ours} - {theirs}", split, *(_show(paired_difference(*pair), "+") for pair in both)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _show(found: Interval, sign: str = "") -> str:
    return f"{found.value:{sign}.3f} ({found.low:{sign}.3f} to {found.high:{sign}.3f})"


def _written(items: Sequence[Item], folder: Path, by: str, picture: Callable[[Item], bytes]) -> Path:
    """Pictures as files; those that the same has made before stay."""
    note = folder / "made-by.txt"
    if not note.exists() or note.read_text(encoding="utf-8") != by:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        note.write_text(by, encoding="utf-8")
    for index, item in enumerate(items):
        if not (file := folder / f"{index:05d}.png").exists():
            unfinished = file.with_suffix(".partial")
            unfinished.write_bytes(picture(item))
            unfinished.replace(file)
    return folder


def _read(folder: Path, split: PlainSplit) -> Readings:
    return _measured(folder, [word for _, word in asked(wanted(split))])


def _measured(folder: Path, words: Sequence[str]) -> Readings:
    """Each picture's scores, the n-th of which should show the n-th word; pictures of one word are one group."""
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
