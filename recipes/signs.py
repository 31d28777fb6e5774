"""What the recipes of generators share: plain signs, their tokens, a run over them."""

import dataclasses
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nano_data import SAID, plain_signs

from imtok.checkpoints import write_text
from imtok.data.plain_signs import PlainSplit
from imtok.data.readers import fingerprint, open_dataset
from imtok.data.shards import ShardReader, ShardWriter
from imtok.data.synthetic import synthesize
from imtok.data.text_features import embed
from imtok.data.unseen_captions import write_unseen_captions
from imtok.evaluation.generated import evaluate_generated
from imtok.evaluation.results import Score
from imtok.generators.generate import generate
from imtok.tokenizers.encode import encode_pictures
from imtok.tokenizers.text import TextConfig
from imtok.training.launch import train
from imtok.training.run import GeneratorRunConfig

HELD_OUT = 256
DISTANCE = "fd_efficientnet_lite0"
"""Deviation: a Fréchet distance of other features than gFID's."""
MANY_SIGNS = 80_000
"""For generators of codes: of words of every kind, numbers and plates too, and no sign more than once. Of the
few words that other generators know, held-out codes became less likely while those of the training became more so."""
UNSEEN = 10
"""Captions of each class that no picture of the training has."""


def render(out: Path, resolution: int, count: int, labels: tuple[str, ...] = SAID) -> Path:
    """So many signs to train on, and others to look at, as OUT/train and OUT/combinations; what is there stays.

    Args:
        out: folder.
        resolution: of the pictures.
        count: to train on.
        labels: kinds of words; every kind, if none are named.
    """
    counts: dict[PlainSplit, int] = {"train": count, "combinations": HELD_OUT}
    for split, count in counts.items():
        place = str(out / split)
        synthesize(place, count=count, size=resolution, plain=True, split=split, labels=labels, steady=True)
    return out


def tell(signs: Path, hears: TextConfig) -> None:
    """Store what a text encoder says of the captions, and unseen captions of every class, beside the signs.

    The unseen ones are neither of the training nor of the held-out signs that samples are compared with.
    """
    for split in ("train", "combinations"):
        embed(str(signs / split), hears.encoder, hears.max_tokens)
    compared = {sample.captions[0] for sample in open_dataset(signs / "combinations")}
    others = signs / "others"
    shutil.rmtree(others, ignore_errors=True)
    with ShardWriter(str(others)) as writer:
        for sample in plain_signs(4 * HELD_OUT, seed=2, split="combinations"):
            if sample.captions[0] not in compared:
                writer.write(sample)
    write_unseen_captions(str(signs / "train"), str(others), per_class=UNSEEN)


def with_photographs(signs: Path, shards: Path, hears: TextConfig, out: Path) -> Path:
    """The signs and the captioned photographs of other shards, as OUT/train and OUT/combinations; for prompts alone.

    What has no class there is a photograph. Of its captions the first is kept: a tokenizer that hears captions encodes
    a picture with one, and its generator shall see no fewer than that of a tokenizer that hears none.

    Args:
        signs: rendered.
        shards: of recipes/textok_nano.py, with `train` and `validation` in it.
        hears: whose encoder reads the captions.
        out: folder; what is there already stays.
    """
    for split, theirs in (("train", "train"), ("combinations", "validation")):
        done, made_of = out / f"{split}.complete", fingerprint(shards / theirs)
        if done.exists() and done.read_text() != made_of:
            raise SystemExit(f"{out}: holds photographs of other shards than {shards}; take another folder")
        if not done.exists():
            shutil.rmtree(out / split, ignore_errors=True)
            others = open_dataset(shards / theirs)
            photographs = (sample for sample in others if sample.captions and sample.label is None)
            with ShardWriter(str(out / split)) as writer:
                for sample in itertools.chain(open_dataset(signs / split), photographs):
                    writer.write(dataclasses.replace(sample, captions=sample.captions[:1]))
            write_text(done, made_of)
        embed(str(out / split), hears.encoder, hears.max_tokens)
    return out


def encode(tokenizer: str, signs: Path, out: Path, resolution: int) -> Path:
    """The signs' tokens, as OUT/train and OUT/combinations; what is there already stays."""
    for split in ("train", "combinations"):
        encode_pictures(tokenizer, signs / split, out / split, resolution)
    return out


def run(config: GeneratorRunConfig, tokens: Path, out: Path) -> Path:
    """Train to the end, or go on with it; a finished run is left alone."""
    held_out = str(tokens / "combinations")
    return train(config, str(tokens / "train"), out, validation=held_out, resume=True)


def seeded(config: GeneratorRunConfig, seed: int) -> GeneratorRunConfig:
    """With other first weights and another order of the pictures."""
    return dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))


def held_out_classes(signs: Path) -> list[str]:
    """Of each held-out sign. InMemoryDataset of the same are as many of each class: prices are rarer than numbers."""
    return [sign.label or "" for sign in ShardReader(str(signs / "combinations")).annotations()]


def samples_of(
    run: Path, labels: Sequence[str] | None = None, prompts: Sequence[str] | None = None, **sampling: Any
) -> Path:
    """Where a generator's samples lie, one for each label or prompt, drawn by settings of its own or by others."""
    out = run.with_name("-".join([run.name, "samples", *(str(value) for value in sampling.values())]))
    generate(str(run), out, labels, prompts, **sampling)
    return out


def distance(samples: Path, reference: Path) -> Score:
    """The distance of a set of pictures from another."""
    scores = samples.with_name(f"{samples.name}-scores")
    found = evaluate_generated(samples, scores, reference=reference, metrics=[DISTANCE])
    for reason in found.failed.values():
        raise SystemExit(reason)
    return found.metrics[DISTANCE]


def show(far: Score) -> str:
    """A distance, and the least and the largest of the quarters of the pictures.

    Two whose quarters overlap are not told apart. All are too large, since the pictures are fewer than the features,
    and the quarters' more so.
    """
    assert far.parts is not None
    return f"{far.value:.1f} (quarters {min(far.parts):.1f} to {max(far.parts):.1f})"
