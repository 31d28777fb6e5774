"""Train `far-nano`, and reproduce FQGAN's Table 4 in miniature: three heads on the same codes, data and steps.

    python recipes/far_nano.py --out FOLDER

Plain signs in three colours are rendered and encoded by a tokenizer with two codebooks; a sign's class is its word.
Generators with the factorized, the linear and the MLP head are trained on the codes for a few steps, then `far-nano`
for longer. Each is evaluated by the likelihood of other signs of the same words and by the Fréchet distance between
these signs and as many samples of the same classes. On `far-nano`'s samples, a text recognizer that was not used in
training reads the words. Every step can be interrupted and resumes where it stopped.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import tyro
from legibility import check_judges, read_signs, reconstructed, rendered, table
from nano import ship
from signs import distance, encode, render, run, samples_of, seeded, show

from imtok import presets
from imtok.checkpoints import RunFolder, write_text
from imtok.data.readers import open_dataset
from imtok.data.sample import Sample
from imtok.data.token_shards import TokenShards, TokenWriter
from imtok.generators.far import FARConfig
from imtok.generators.heads import HeadKind
from imtok.tokenizers.catalog import locate
from imtok.training.run import GeneratorRunConfig

RESOLUTION = 128
SIGNS = 32_000
COLOURS = ("white", "black", "red")
"""The codes of a letter differ by colour; in all eleven colours, a small model does not learn to spell in few steps."""
PART = 1024
STEPS = 600
"""Training steps of each head's run."""
PAPER = {"factorized": "4.37 / 3.74", "linear": "5.19 / 6.90", "mlp": "5.59 / 8.88"}
"""gFID of FAR-L at top-k 4,096 and 8,192 and guidance 1.75; ours sample from all codes."""


def main(out: Path, tokenizer: str = "fqgan-dual-nano", seed: int = 0) -> None:
    """Run the whole recipe.

    Args:
        out: working folder.
        tokenizer: a tokenizer with two codebooks: a shipped name or a run folder.
        seed: seed of the training.
    """
    locate(tokenizer)  # fails here rather than later if the tokenizer is missing
    check_judges()
    out = out.resolve()
    signs = render(out / "signs", RESOLUTION, SIGNS, colours=COLOURS, held_out="train")
    folder = out / Path(tokenizer).name
    codes = by_word(encode(tokenizer, signs, folder / "codes", RESOLUTION), folder / "codes-by-word")
    held_out = list(open_dataset(signs / "held-out"))
    lines = [
        "| head | NLL of a position | first code | second code | Fréchet distance | paper: gFID |",
        "|---" * 6 + "|",
    ]
    base = seeded(presets.get_generator("far-nano"), seed)
    for head in get_args(HeadKind):
        trained = run(with_head(base, head), codes, out / f"{head}-{seed}")
        lines.append(f"| {head} | {' | '.join(scores(trained, signs, words_of(held_out)))} | {PAPER[head]} |")
    final = ship(run(base, codes, out / f"far-nano-{seed}"), out / f"shipped-{seed}" / "far-nano")
    lines.append(f"| far-nano | {' | '.join(scores(final, signs, words_of(held_out)))} | |")
    lines += ["", words_read(final, tokenizer, held_out, out)]
    text = "\n".join(lines)
    write_text(out / f"table-{seed}.md", text + "\n")
    print(text)


def by_word(codes: Path, out: Path) -> Path:
    """Write the same codes with each sign's word as its class, in place of the word's kind; existing parts are kept."""
    for split in ("train", "held-out"):
        shards = TokenShards(codes / split)
        writer = TokenWriter(out / split, shards.manifest)
        for start in range(writer.written, len(shards), PART):
            rows = [shards[index] for index in range(start, min(start + PART, len(shards)))]
            writer.write([dataclasses.replace(row, label=row.captions[0].rsplit(" ", 1)[1]) for row in rows])
    return out


def with_head(config: GeneratorRunConfig, head: HeadKind) -> GeneratorRunConfig:
    """Return the config of a short run with this head, otherwise the same."""
    assert isinstance(config.generator, FARConfig)
    training = dataclasses.replace(config.training, steps=STEPS)
    return dataclasses.replace(
        config, name=f"far-nano-{head}", generator=dataclasses.replace(config.generator, head=head), training=training
    )


def scores(trained: Path, signs: Path, labels: Sequence[str]) -> list[str]:
    """Return the NLL of held-out signs in nats per position, in all and per codebook, and the samples' distance.

    Sampled at temperature 1 and without guidance, so that the distance is that of the learned distribution.
    """
    likely = [record for record in RunFolder(trained).read_metrics() if "validation/nll" in record][-1]
    nll = [likely[f"validation/{name}"] for name in ("nll", "nll_0", "nll_1")]
    far = distance(samples_of(trained, labels, temperature=1.0), signs / "held-out")
    return [*(f"{value:.3f}" for value in nll), show(far)]


def words_read(generator: Path, tokenizer: str, held_out: Sequence[Sample], out: Path) -> str:
    """Return a table of what is read on samples of the held-out signs' words, and on these signs themselves."""
    words = words_of(held_out)
    folders = {
        "generated": samples_of(generator, words),
        "reconstructed": reconstructed(tokenizer, held_out, out / "again"),
        "rendered": rendered(held_out, out / "rendered"),
    }
    return table({name: {"held-out": read_signs(folder, words)} for name, folder in folders.items()})


def words_of(signs: Sequence[Sample]) -> list[str]:
    """Return the word of each sign."""
    return [sign.words[0].text or "" for sign in signs if sign.words]


if __name__ == "__main__":
    tyro.cli(main)
