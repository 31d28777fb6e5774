"""Makes `dit-nano` and `dit-t2i-nano`, and TexTok's Figure 4 and Table 3 in miniature.

    python recipes/dit_nano.py --textok FOLDER_OF_textok_nano.py --out FOLDER

What happens: plain signs are written down as latents of several tokenizers: `textok-nano`, its siblings from
recipes/textok_nano.py, and two small KL autoencoders that are trained here on the same pictures. Class-conditional DiTs
of one size and schedule learn to draw each one's latents, and are timed and compared (Figure 4). Text-conditional ones
learn it over TexTok and over its baseline (Table 3), and a judge reads their signs. Every step can be killed and goes
on where it was.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

import dataclasses
import time
from pathlib import Path

import tyro
from legibility import (
    class_consistency,
    read_generated,
    read_originals,
    read_reconstructed,
    read_showpiece,
    rendered_consistency,
    table,
)
from nano import run as train_tokenizer
from nano import ship
from signs import encode, render, run, seeded, tell
from textok_nano import heard

from imtok import presets
from imtok.checkpoints import write_text
from imtok.evaluation.generated import evaluate_generated
from imtok.evaluation.results import Score
from imtok.generators.catalog import load
from imtok.generators.generate import generate
from imtok.training.run import GeneratorRunConfig

RESOLUTION = 64
LATENTS = {"textok-8": 8, "textok-nano": 16, "textok-32": 32, "kl-nano": 256, "kl-nano-f2": 1024}
"""Tokenizers of Figure 4 and their tokens."""
PAIR = ("textok-nano", "baseline-nano")
"""Those of Table 3; shipped, so that what is drawn through them can be shipped too."""
KL_STEPS, FIGURE_STEPS, FIGURE_BATCH = 500, 400, 16
PAPER_SPEED = "14.3 times at 256 px, 93.5 times at 512 px with 32 tokens; DiT has 256 and 1,024 there"
TIMED, SAMPLES = 8, 16
"""Pictures that are timed, together; pictures of each class that are compared."""
DISTANCE = "fd_efficientnet_lite0"
"""Deviation: a Fréchet distance of other features than gFID's."""


def main(textok: Path, out: Path, seed: int = 0) -> None:
    """Run the whole recipe.

    Args:
        textok: where recipes/textok_nano.py has put its runs.
        out: working folder.
        seed: of the training.
    """
    signs = render(out / "signs", RESOLUTION)
    tell(signs, heard(presets.get("textok-nano")))
    tokenizers = {name: open_tokenizer(name, textok, out) for name in (*LATENTS, PAIR[1])}
    latents = {
        name: encode(str(place), signs, out / name / "latents", RESOLUTION) for name, place in tokenizers.items()
    }
    lines = figure_4(latents, signs, out, seed)
    lines += ["", *table_3(tokenizers, latents, out, seed)]
    final = run(seeded(presets.get_generator("dit-nano"), seed), latents[PAIR[0]], out / f"dit-nano-{seed}")
    classes = load(str(final)).generator.config.classes
    distance = compared(final, signs)
    right = class_consistency(sampled(final), [label for label in classes for _ in range(SAMPLES)])
    shown = rendered_consistency(out / "rendered" / "kinds", RESOLUTION)
    lines += [
        "",
        f"dit-nano: {DISTANCE} {distance.value:.1f}; of the kind asked for: {right}, of rendered signs {shown}",
    ]
    ship(final, out / "shipped" / "dit-nano")
    text = "\n".join(lines)
    write_text(out / f"tables-{seed}.md", text + "\n")
    print(text)


def open_tokenizer(name: str, textok: Path, out: Path) -> Path:
    """A shipped tokenizer, a run of recipes/textok_nano.py, or a KL autoencoder, trained here on its pictures."""
    if name in PAIR:
        return Path(name)
    if not name.startswith("kl"):
        return textok / f"{name}-seed-0"
    config = presets.get(name)
    short = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=KL_STEPS))
    return train_tokenizer(short, textok / "shards", out / name / "tokenizer")


def figure_4(latents: dict[str, Path], signs: Path, out: Path, seed: int) -> list[str]:
    """The speed and the quality of class-conditional DiTs of one size over latents of each tokenizer."""
    lines = ["| latents | tokens | a picture takes | speed | Fréchet distance |", "|---" * 5 + "|"]
    runs = {name: run(figure_run(seed), latents[name], out / name / f"figure-{seed}") for name in LATENTS}
    seconds = {name: timed(trained) for name, trained in runs.items()}  # one after the other, in one go
    slowest = max(seconds.values())
    for name, trained in runs.items():
        speed = f"{1000 * seconds[name]:.0f} ms | {slowest / seconds[name]:.1f} times"
        lines.append(f"| {name} | {LATENTS[name]} | {speed} | {compared(trained, signs).value:.1f} |")
    return [*lines, "", f"paper: {PAPER_SPEED}"]


def figure_run(seed: int) -> GeneratorRunConfig:
    """dit-nano, shorter and with smaller batches: 1,024 tokens a picture are many."""
    base = seeded(presets.get_generator("dit-nano"), seed)
    training = dataclasses.replace(base.training, steps=FIGURE_STEPS, global_batch_size=FIGURE_BATCH)
    return dataclasses.replace(base, name="dit-nano-figure", training=training)


def timed(trained: Path) -> float:
    """Seconds to draw a picture, of several together, tokenizer included."""
    pipeline = load(str(trained))
    labels = [0] * TIMED
    pipeline.generate(labels, num_inference_steps=2)
    start = time.perf_counter()
    pipeline.generate(labels)
    return (time.perf_counter() - start) / TIMED


def sampled(trained: Path) -> Path:
    """Where a generator's samples lie."""
    return trained.with_name(f"{trained.name}-samples")


def compared(trained: Path, signs: Path) -> Score:
    """How far samples of all classes are from held-out signs."""
    samples, scored = sampled(trained), trained.with_name(f"{trained.name}-scores")
    generate(str(trained), samples, labels=list(load(str(trained)).generator.config.classes), count=SAMPLES)
    found = evaluate_generated(samples, scored, reference=signs / "combinations", metrics=[DISTANCE])
    return found.metrics[DISTANCE]


def table_3(tokenizers: dict[str, Path], latents: dict[str, Path], out: Path, seed: int) -> list[str]:
    """What is read in signs that the same text-conditional generator draws through TexTok and through its baseline."""
    config = seeded(presets.get_generator("dit-t2i-nano"), seed)
    readings = {"rendered": read_originals(out / "rendered", RESOLUTION)}
    for name in PAIR:
        trained = run(config, latents[name], out / name / f"t2i-{seed}")
        place = str(tokenizers[name])
        readings[f"{name}, reconstructed"] = read_reconstructed(place, out / name / "reconstructed", RESOLUTION)
        readings[f"{name}, generated"] = read_generated(trained, out / name / f"generated-{seed}")
    shipped = out / PAIR[0] / f"t2i-{seed}"
    ship(shipped, out / "shipped" / "dit-t2i-nano")
    shown = read_showpiece(shipped, out / PAIR[0] / f"showpiece-{seed}")
    return [table(readings, [(f"{PAIR[0]}, generated", f"{PAIR[1]}, generated")]), "", shown]


if __name__ == "__main__":
    tyro.cli(main)
