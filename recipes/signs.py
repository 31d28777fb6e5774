"""Shared code of the generator recipes: plain signs, their tokens, and training runs on them."""

import dataclasses
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nano_data import SIGN_LABELS, plain_signs

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
"""Deviation: a Fréchet distance on other features than gFID's."""
MANY_SIGNS = 80_000
"""Number of training signs of recipes/insightar_nano.py, each used once, with words of every kind, including numbers
and plates. On the few words of the other recipes, generators of codes overfitted to the pairs of word and colour: the
likelihood of unseen pairs fell while that of the training's rose."""
UNSEEN = 10
"""Number of captions per class that no training picture has."""


def render(
    out: Path,
    resolution: int,
    count: int,
    labels: tuple[str, ...] = SIGN_LABELS,
    colours: tuple[str, ...] = (),
    held_out: PlainSplit = "combinations",
) -> Path:
    """Render `count` signs for training as OUT/train and others as OUT/held-out; existing shards are kept.

    Args:
        out: working folder.
        resolution: side of the pictures in pixels.
        count: number of training signs.
        labels: kinds of words; all kinds if empty.
        colours: colours of the signs; all if empty.
        held_out: split of the held-out signs; with `train`, they are other pictures of the training's words and
            colours.

    Returns:
        The working folder.
    """
    other_pictures = int(held_out == "train")
    sets: dict[str, tuple[PlainSplit, int, int]] = {
        "train": ("train", count, 0),
        "held-out": (held_out, HELD_OUT, other_pictures),
    }
    for name, (split, number, seed) in sets.items():
        synthesize(
            str(out / name),
            count=number,
            size=resolution,
            seed=seed,
            plain=True,
            split=split,
            labels=labels,
            colours=colours,
            steady=True,
        )
    return out


def store_text_features(signs: Path, text: TextConfig) -> None:
    """Store the text features of the captions, and unseen captions of every class, next to the signs.

    The unseen captions are neither those of training signs nor those of the held-out signs that samples are compared
    with.
    """
    for split in ("train", "held-out"):
        embed(str(signs / split), text.encoder, text.max_tokens)
    compared = {sample.captions[0] for sample in open_dataset(signs / "held-out")}
    others = signs / "others"
    shutil.rmtree(others, ignore_errors=True)
    with ShardWriter(str(others)) as writer:
        for sample in plain_signs(4 * HELD_OUT, seed=2, split="combinations"):
            if sample.captions[0] not in compared:
                writer.write(sample)
    write_unseen_captions(str(signs / "train"), str(others), per_class=UNSEEN)


def with_photographs(signs: Path, shards: Path, text: TextConfig, out: Path) -> Path:
    """Write the signs and the captioned photographs of other shards as OUT/train and OUT/held-out.

    The result is for text-conditional generators only: photographs have no class. In `shards`, pictures with a caption
    and without a class are the photographs. Only the first caption of a picture is kept: a text-conditioned tokenizer
    encodes a picture with one caption, and the generators over tokenizers with and without text shall be trained on
    equally many.

    Args:
        signs: folder of rendered signs, with `train` and `held-out`.
        shards: shards of recipes/textok_nano.py, with the splits `train` and `validation`.
        text: text config whose encoder encodes the captions.
        out: folder for the result; finished shards are kept.

    Returns:
        The folder `out`.
    """
    for split, source in (("train", "train"), ("held-out", "validation")):
        done, made_of = out / f"{split}.complete", fingerprint(shards / source)
        if done.exists() and done.read_text() != made_of:
            raise SystemExit(f"{out}: holds photographs of other shards than {shards}; take another folder")
        if not done.exists():
            shutil.rmtree(out / split, ignore_errors=True)
            others = open_dataset(shards / source)
            photographs = (sample for sample in others if sample.captions and sample.label is None)
            with ShardWriter(str(out / split)) as writer:
                for sample in itertools.chain(open_dataset(signs / split), photographs):
                    writer.write(dataclasses.replace(sample, captions=sample.captions[:1]))
            write_text(done, made_of)
        embed(str(out / split), text.encoder, text.max_tokens)
    return out


def encode(tokenizer: str, signs: Path, out: Path, resolution: int) -> Path:
    """Write the tokens of the signs as OUT/train and OUT/held-out; existing tokens are kept."""
    for split in ("train", "held-out"):
        encode_pictures(tokenizer, signs / split, out / split, resolution)
    return out


def run(config: GeneratorRunConfig, tokens: Path, out: Path) -> Path:
    """Train a generator to the end, resuming an unfinished run; a finished run is left alone. Return the run folder."""
    held_out = str(tokens / "held-out")
    return train(config, str(tokens / "train"), out, validation=held_out, resume=True)


def seeded(config: GeneratorRunConfig, seed: int) -> GeneratorRunConfig:
    """Return the config with this seed, which decides the initial weights and the order of the pictures."""
    return dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))


def held_out_classes(signs: Path) -> list[str]:
    """Return the class of each held-out sign, so that samples have the same class frequencies as these signs."""
    return [sign.label or "" for sign in ShardReader(str(signs / "held-out")).annotations()]


def samples_of(
    run: Path, labels: Sequence[str] | None = None, prompts: Sequence[str] | None = None, **sampling: Any
) -> Path:
    """Generate one sample per label or prompt, with the generator's or other sampling settings; return their folder."""
    out = run.with_name("-".join([run.name, "samples", *(str(value) for value in sampling.values())]))
    generate(str(run), out, labels, prompts, **sampling)
    return out


def distance(samples: Path, reference: Path) -> Score:
    """Return the Fréchet distance between two sets of pictures."""
    scores = samples.with_name(f"{samples.name}-scores")
    results = evaluate_generated(samples, scores, reference=reference, metrics=[DISTANCE])
    for reason in results.failed.values():
        raise SystemExit(reason)
    return results.metrics[DISTANCE]


def show(far: Score) -> str:
    """Return a distance as text, with the smallest and the largest distance of the quarters of the pictures.

    Distances whose quarters overlap cannot be distinguished. All distances are biased upwards, since there are fewer
    pictures than feature dimensions, and those of the quarters more so.
    """
    assert far.parts is not None
    return f"{far.value:.1f} (quarters {min(far.parts):.1f} to {max(far.parts):.1f})"
