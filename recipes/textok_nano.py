"""Train `textok-nano` and `baseline-nano`, and reproduce TexTok's Tables 1, 4 and 6 in miniature, with controls.

    python recipes/textok_nano.py --captioned PICTURES… --out FOLDER [--only NAME…]

Needs the `plots` extra.

The runs form one queue, which can be stopped at any moment and resumes where it was; finished runs are left alone.
Tokenizers of the same size and schedule are trained on captioned photographs and plain signs of 64 px, with 2 to 32
tokens, with and without the caption. The signs show a hundred words at one position in one typeface, so that a caption
determines everything of a sign but its shade. At the end all tokenizers are evaluated on held-out photographs and
signs: signs of training words in other colours, and signs of words that are not in the training.

A sign's caption contains its words. The tables therefore show what the caption alone gives (no tokens at all), what
happens when the tokenizer is given another picture's caption, and the bits of the caption next to those of the tokens
(32 bits per channel for continuous tokens). The two tokenizers that imtok ships are trained last, for longer.

The paper's columns are printed next to ours. They are of another model at another scale, on ImageNet, trained with
perceptual and adversarial losses that are not used here, so only the order of the rows can be compared.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import tyro
from ablation import Column, Row, Table, carry_out, check_names, name_of, only_these
from nano import run, ship, test_sets
from nano_data import PLAIN_SIGNS, SIGN_LABELS, TEST_SIGNS, plain_signs, prepare

from imtok import presets
from imtok.data.text_features import embed
from imtok.evaluation.evaluate import evaluate
from imtok.evaluation.results import Evaluation
from imtok.tokenizers.quantizers import VQConfig
from imtok.tokenizers.text import LABELS as BY_CLASS
from imtok.tokenizers.text import TextConfig
from imtok.tokenizers.textok import TexTokConfig
from imtok.training.run import Phase, RunConfig

STEPS = 2000
TOKENS = (2, 4, 8, 16, 32)
"""Numbers of tokens. 2 to 16 stand for the paper's 32 to 256, with as many numbers per pixel; 32 has no counterpart in
the paper."""
REPEATED = {f"{kind}-{tokens}" for kind in ("baseline", "textok") for tokens in (2, 8, 16, 32)}
"""Runs that are done with every seed; the others are done with the first seed only."""
KINDS = ("seen-words", "signs")
"""Test sets of signs: with words that are in the training, and with words that are not."""

PSNR = Column("PSNR", "psnr", ("plain", *KINDS))
VGG16 = Column("VGG16 distance", "vgg16_distance", ("plain", *KINDS), "{:.3f}")
FRECHET = Column("Fréchet distance", "fd_efficientnet_lite0", ("plain", *KINDS), "{:.1f}", "rFID")
"""Deviation: a Fréchet distance on other features than the paper's."""
ACCURACY = Column("Text accuracy", "text_accuracy", KINDS, "{:.1%}")
RATE = Column("Bits per pixel", "bits_per_pixel", ("plain",), "{:.3f}")
BOTH = Column("Bits per pixel, the caption's included", "bits_per_pixel_with_caption", ("plain", *KINDS), "{:.3f}")
CAPTION = Column("Bits of the caption", "caption_bits", ("plain", *KINDS), "{:.0f}")

TOKEN_COUNTS = Table(
    "Table 1: tokens, without and with text",
    (PSNR, VGG16, FRECHET, ACCURACY, RATE, BOTH, CAPTION),
    (
        Row("baseline-2", "2 tokens, without (paper: 32)", {"rFID": "3.82", "PSNR": "17.67"}),
        Row("textok-2", "2 tokens, with (paper: 32)", {"rFID": "2.40", "PSNR": "18.32"}),
        Row("baseline-4", "4 tokens, without (paper: 64)", {"rFID": "2.04", "PSNR": "19.52"}),
        Row("textok-4", "4 tokens, with (paper: 64)", {"rFID": "1.53", "PSNR": "20.10"}),
        Row("baseline-8", "8 tokens, without (paper: 128)", {"rFID": "1.49", "PSNR": "20.51"}),
        Row("textok-8", "8 tokens, with (paper: 128)", {"rFID": "1.04", "PSNR": "22.05"}),
        Row("baseline-16", "16 tokens, without (paper: 256)", {"rFID": "0.91", "PSNR": "23.05"}),
        Row("textok-16", "16 tokens, with (paper: 256)", {"rFID": "0.69", "PSNR": "24.38"}),
        Row("baseline-32", "32 tokens, without"),
        Row("textok-32", "32 tokens, with"),
        Row("textok-0", "no tokens: the caption alone"),
    ),
)
AMOUNT = Table(
    "Table 4a: amount of text (2 tokens; on signs alone, and a class has 8 bits a letter where it is given in words)",
    (PSNR, FRECHET, ACCURACY, CAPTION),
    (
        Row("baseline-2", "none", {"rFID": "1.49", "PSNR": "20.51"}),
        Row("class", "class category", {"rFID": "1.14", "PSNR": "21.56"}),
        Row("class-text", "class text", {"rFID": "1.15", "PSNR": "21.58"}),
        Row("textok-2", "caption (paper: of 75 words)", {"rFID": "1.04", "PSNR": "22.05"}),
    ),
)
HOW = Table(
    "Table 4c: how the text comes in (2 tokens)",
    (PSNR, FRECHET, ACCURACY),
    (
        Row("baseline-2", "none", {"rFID": "1.49", "PSNR": "20.51"}),
        Row("cross-attention", "cross-attention layer", {"rFID": "1.31", "PSNR": "21.42"}),
        Row("textok-2", "in context", {"rFID": "1.04", "PSNR": "22.05"}),
    ),
)
WHERE = Table(
    "Table 4d: which half is conditioned on it (2 tokens; the paper's numbers are missing from our text)",
    (PSNR, FRECHET, ACCURACY),
    (
        Row("baseline-2", "neither"),
        Row("encoder", "tokenizer"),
        Row("decoder", "detokenizer"),
        Row("textok-2", "both"),
    ),
)
DISCRETE = Table(
    "Table 6: 4,096 codes (the paper's numbers are missing from our text)",
    (PSNR, VGG16, FRECHET, ACCURACY),
    (
        Row("vq-baseline-2", "2 tokens, without"),
        Row("vq-textok-2", "2 tokens, with"),
        Row("vq-baseline-8", "8 tokens, without"),
        Row("vq-textok-8", "8 tokens, with"),
    ),
)
TABLES = (TOKEN_COUNTS, AMOUNT, HOW, WHERE, DISCRETE)
SHIPPED = ("textok-nano", "baseline-nano")


def main(captioned: tuple[str, ...], out: Path, seeds: tuple[int, ...] = (0, 1), only: tuple[str, ...] = ()) -> None:
    """Run the queue, evaluate, print the tables, and plot Table 1.

    Args:
        captioned: sources of pictures with captions and without classes, which only the signs have here.
        out: folder for the runs, `tables.md`, `controls.md`, `tokens.png` and `shipped/`.
        seeds: seeds of the runs of Table 1 in `REPEATED`; the other runs are done with the first seed only.
        only: names of the runs to do; by default all.
    """
    check_names(only, [*configs(), *SHIPPED])
    runs, shards = only_these(configs(), only), captioned_shards(captioned, out)
    if runs:
        show(runs, shards, out, seeds)
    for name in SHIPPED:
        if not only or name in only:
            ship(run(presets.get(name), shards, out / name), out / "shipped" / name)


def show(runs: dict[str, RunConfig], shards: Path, out: Path, seeds: tuple[int, ...]) -> None:
    """Do the runs of the tables, print the tables, compare right captions with wrong ones, and plot Table 1."""
    found = carry_out(runs, lambda *_: None, TABLES, shards, out, seeds, runs.keys() - REPEATED)
    conditioned = [name for name in (f"textok-{tokens}" for tokens in TOKENS) if name in runs]
    done = [(name, seed) for name in conditioned for seed in seeds if seed == seeds[0] or name in REPEATED]
    controls([out / name_of(name, seed) for name, seed in done], shards, out / "controls.md")
    draw(found, seeds, out / "tokens.png")


def captioned_shards(captioned: tuple[str, ...], out: Path) -> Path:
    """Prepare split shards of photographs and signs, with MiniLM's features of their captions stored next to them."""
    base = presets.get("textok-nano")
    text = text_config_of(base)
    side = base.data.crop.resolution
    tests = {
        "seen-words": plain_signs(TEST_SIGNS, seed=3, size=side, split="combinations"),
        "signs": plain_signs(TEST_SIGNS, seed=2, size=side, split="words"),
    }
    shards = prepare((), (), captioned, out, base.data.crop, (plain_signs(PLAIN_SIGNS, seed=1, size=side), tests))
    for folder in (shards / "train", shards / "validation", *test_sets(shards)):
        embed(str(folder), text.encoder, text.max_tokens)
    return shards


def configs() -> dict[str, RunConfig]:
    """Return the configs of all runs by name."""
    kinds = ("baseline", "textok")
    few = short("textok", TOKENS[0])
    runs = {
        **{f"{kind}-{tokens}": short(kind, tokens) for kind in kinds for tokens in TOKENS},
        "textok-0": short("textok", 0),
        "class": with_text(few, encoder=BY_CLASS, dim=len(SIGN_LABELS), classes=SIGN_LABELS),
        "class-text": with_text(few, template="a sign with a {label} on it"),
        "cross-attention": with_text(few, how="cross_attention"),
        "encoder": with_text(few, where=("encoder",)),
        "decoder": with_text(few, where=("decoder",)),
        **{f"vq-{kind}-{tokens}": discrete(short(kind, tokens)) for kind in kinds for tokens in (2, 8)},
    }
    return {name: dataclasses.replace(config, name=f"nano-{name}") for name, config in runs.items()}


def short(kind: str, tokens: int) -> RunConfig:
    """Return the config of `textok-nano` or `baseline-nano` with so many tokens and the steps of this queue."""
    config = shortened(presets.get(f"{kind}-nano"), STEPS)
    tokenizer = dataclasses.replace(config.tokenizer, num_latent_tokens=tokens)
    return dataclasses.replace(config, name=f"nano-{kind}-{tokens}", tokenizer=tokenizer)


def shortened(config: RunConfig, steps: int) -> RunConfig:
    """Return the config with one phase of so many steps."""
    training = dataclasses.replace(config.training, phases=(Phase(name="train", steps=steps),))
    return dataclasses.replace(config, training=training)


def with_text(config: RunConfig, **text: object) -> RunConfig:
    """Return the config with changed fields of the tokenizer's text config."""
    changed = dataclasses.replace(text_config_of(config), **text)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, text=changed))


def text_config_of(config: RunConfig) -> TextConfig:
    """Return the text config of a run's tokenizer."""
    assert isinstance(config.tokenizer, TexTokConfig)
    assert config.tokenizer.text is not None
    return config.tokenizer.text


def discrete(config: RunConfig) -> RunConfig:
    """Return the config with a discrete tokenizer of the paper's 4,096 codes."""
    quantizer = VQConfig(codebook_size=4096, codebook_dim=8)
    return dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, quantizer=quantizer))


def controls(trained: Sequence[Path], shards: Path, out: Path) -> None:
    """Print and write scores with the right captions and with those of other pictures."""
    lines = ["| run | pictures | metric | right | wrong | wrong - right |", "| --- | --- | --- | --- | --- | --- |"]
    for folder in trained:
        metrics = ["psnr", "text_accuracy"]
        found = evaluate(folder, test_sets(shards), metrics=metrics, checks=False, wrong_captions=True)
        for row in found.comparisons:
            right, wrong = (found.score(name, row.data, row.metric).value for name in (row.baseline, row.tokenizer))
            change = f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})"
            lines.append(f"| {row.baseline} | {row.data} | {row.metric} | {right:.3f} | {wrong:.3f} | {change} |")
    out.write_text("\n".join(lines) + "\n")
    print("\n".join(["", *lines]))


def draw(found: Evaluation, seeds: Sequence[int], out: Path) -> None:
    """Plot the PSNR over the number of tokens, with and without text, for the runs that were done."""
    sets = [data.name for data in found.sets if data.name in PSNR.sets]
    size = (4 * len(sets), 3.2)
    figure, panels = plt.subplots(1, len(sets), figsize=size, constrained_layout=True, squeeze=False)
    for panel, data in zip(panels[0], sets, strict=True):
        for kind, label in (("baseline", "without text"), ("textok", "with text")):
            scores = {
                tokens: mean_psnr(found, [name_of(f"{kind}-{tokens}", seed) for seed in seeds], data)
                for tokens in TOKENS
            }
            done = {tokens: score for tokens, score in scores.items() if score is not None}
            panel.plot(list(done), list(done.values()), "o-", label=label)
        panel.set(title=data, xlabel="tokens", ylabel="PSNR, dB")
        panel.set_xscale("log", base=2)
        panel.set_xticks(TOKENS, [str(tokens) for tokens in TOKENS])
        panel.legend()
    figure.savefig(out, dpi=150)
    plt.close(figure)


def mean_psnr(found: Evaluation, names: Sequence[str], data: str) -> float | None:
    """Return the mean PSNR over the seeds that were done, or None if no run was done."""
    values = [found.score(name, data, "psnr").value for name in names if name in found.tokenizers]
    return fmean(value for value in values if value is not None) if values else None


if __name__ == "__main__":
    tyro.cli(main)
