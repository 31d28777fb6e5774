"""Makes `dit-nano` and `dit-t2i-nano`, and TexTok's Figure 4 and Table 3 in miniature.

    python recipes/dit_nano.py --textok FOLDER_OF_textok_nano.py --out FOLDER [--vae FOLDER_OF_AN_AutoencoderKL]

Needs the `plots` extra.

What happens: plain signs are written down as latents of several tokenizers: `textok-nano` and `baseline-nano`, which
come with imtok, those of recipes/textok_nano.py, and two small KL autoencoders that are trained here on the same
pictures. Class-conditional DiTs of one size learn to draw the latents of each, with more tokens in fewer steps, and are
compared in speed and quality (Figure 4). Text-conditional ones learn it over TexTok and over its baseline (Table 3), of
signs and of the captioned photographs that these have seen, and a judge reads their signs. Photographs have no class,
so the others see none. Every step can be killed and goes on where it was.

TexTok's decoder hears a caption with the word in it: the prompt, or of a class one that no picture has. So the tables
also show what is read when it hears that over latents that were drawn for something else.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

import dataclasses
import itertools
import statistics
import time
from pathlib import Path
from typing import Literal, get_args

import torch
import tyro
from ablation import name_of
from legibility import (
    captions_heard,
    check_judges,
    class_consistency,
    misled_samples,
    read_generated,
    read_misled,
    read_originals,
    read_reconstructed,
    read_showpiece,
    reconstructed,
    rendered,
    table,
)
from nano import run as train_tokenizer
from nano import ship
from nano_data import PLAIN_SIGNS
from signs import (
    DISTANCE,
    distance,
    encode,
    held_out_classes,
    render,
    run,
    samples_of,
    seeded,
    show,
    tell,
    with_photographs,
)
from textok_nano import heard, short, shortened

from imtok import presets
from imtok.checkpoints import RunFolder, write_text
from imtok.config import read_json
from imtok.data.readers import open_dataset
from imtok.data.token_shards import TokenShards
from imtok.evaluation.results import Score
from imtok.generators.catalog import load
from imtok.tokenizers.catalog import locate
from imtok.tokenizers.diffusers_models import WEIGHTS, build_untrained, find_model
from imtok.training.run import GeneratorRunConfig

RESOLUTION = 64
Part = Literal["table-3", "dit-nano", "figure-4"]
FIGURE = {
    "textok-8": (3000, 64),
    "textok-16": (2000, 64),
    "textok-32": (1000, 64),
    "kl-nano": (500, 16),
    "kl-nano-f2": (200, 8),
}
"""Tokenizers of Figure 4, of 8, 16, 32, 256 and 1,024 tokens, trained on the same pictures; and for how many steps, of
how many pictures, a DiT learns to draw the latents of each. Fewer tokens get more, towards equal time: the table says
how long each took."""
PAIR = {"textok-nano": "dit-t2i-nano", "baseline-nano": "dit-t2i-nano-baseline"}
"""Tokenizers of Table 3, and what the generators over them are called; all are shipped or can be."""
FIGURE_SAMPLES, FIGURE_INFERENCE_STEPS = 128, (5, 10, 20)
GRID_STEPS = 600
"""Of the training of the grids' tokenizers, whose steps take five to ten times as long; they do not converge in it."""
GRIDS = ("kl-nano", "kl-nano-f2")
"""Of Figure 4's tokenizers those whose latents are two-dimensional, as many as DiT-XL/2 has at 256 and at 512 px."""
VAE, UNTRAINED = "vae", "vae of random weights"
"""A user's own, in Figure 4."""
PAPER_SPEED = "14.3 times as fast at 256 px (256 tokens), 93.5 times at 512 px (1,024 tokens), at no worse FID"
PAPER_TEXT = "FID 2.82 and CLIP score 29.23 for TexTok, on ImageNet; its table is missing from our text"
TIMED = 8
"""Pictures that are timed, together."""
ROUNDS = 3


def main(
    textok: Path, out: Path, vae: Path | None = None, seed: int = 0, parts: tuple[Part, ...] = get_args(Part)
) -> None:
    """Run the recipe, or parts of it; each prints and writes OUT/PART-SEED.md.

    Args:
        textok: where recipes/textok_nano.py has put its runs.
        out: working folder.
        vae: folder of an AutoencoderKL of diffusers, such as SD-VAE, for one more row of Figure 4; where there is
            only its config.json, random weights take their place, and the row shows the speed alone.
        seed: of the training.
        parts: what to do.
    """
    check_judges()
    for name in PAIR:
        locate(name)  # says now what would be missing later
    out = out.resolve()
    theirs = {} if vae is None else with_weights(vae, out)
    signs = render(out / "signs", RESOLUTION, PLAIN_SIGNS)
    hears = heard(presets.get("textok-nano"))
    tell(signs, hears)
    for part in parts:
        if part == "table-3":
            captioned = with_photographs(signs, textok / "shards", hears, out / "captioned")
            lines = table_3({name: open_tokenizer(name, textok, out) for name in PAIR}, captioned, signs, out, seed)
        elif part == "dit-nano":
            lines = by_class(open_tokenizer("textok-nano", textok, out), signs, out, seed)
        else:
            tokenizers = {name: open_tokenizer(name, textok, out) for name in FIGURE}
            lines = figure_4(tokenizers | theirs, signs, out, seed)
        text = "\n".join(lines)
        write_text(out / f"{part}-{seed}.md", text + "\n")
        print(text)


def with_weights(vae: Path, out: Path) -> dict[str, Path]:
    """An AutoencoderKL by its name here, or one of its config with random weights, as OUT/vae-untrained."""
    folder = find_model(vae) or vae
    if (folder / WEIGHTS).exists():
        return {VAE: folder}
    if others := [file.name for file in folder.glob("*") if file.suffix in (".bin", ".safetensors")]:
        raise SystemExit(f"{folder}: has {others[0]}, and weights are read from {WEIGHTS}")
    torch.manual_seed(0)
    model = build_untrained(folder, "AutoencoderKL", read_json(folder / "config.json"))
    model.save_pretrained(out / "vae-untrained")
    return {UNTRAINED: out / "vae-untrained"}


def by_class(tokenizer: Path, signs: Path, out: Path, seed: int) -> list[str]:
    """What the shipped class-conditional generator draws of held-out signs' classes."""
    latents = encode(str(tokenizer), signs, out / tokenizer.name / "latents", RESOLUTION)
    trained = run(seeded(presets.get_generator("dit-nano"), seed), latents, out / f"dit-nano-{seed}")
    final = ship(trained, out / f"shipped-{seed}" / "dit-nano")
    held_out, asked = list(open_dataset(signs / "combinations")), held_out_classes(signs)
    # Against what its tokenizer makes of held-out signs: what that loses is not the generator's fault.
    reference = reconstructed(str(tokenizer), held_out, out / "reconstructed")
    samples, heard_of = samples_of(final, asked), captions_heard(final, asked)
    return [
        f"dit-nano: {DISTANCE} to reconstructions {show(distance(samples, reference))}",
        f"signs of the kind asked for: {class_consistency(samples, asked, heard_of)}",
        f"over latents of another kind: {class_consistency(misled_samples(final, asked), asked, heard_of)}",
        f"rendered ones: {class_consistency(rendered(held_out, out / 'rendered' / 'kinds'), asked)}",
    ]


def open_tokenizer(name: str, textok: Path, out: Path) -> Path:
    """A shipped tokenizer, or one that is trained on the pictures of recipes/textok_nano.py unless it has been."""
    if name in PAIR:
        return Path(name)
    if name.startswith("kl"):
        return train_tokenizer(shortened(presets.get(name), GRID_STEPS), textok / "shards", out / name / "tokenizer")
    kind, tokens = name.split("-")
    return train_tokenizer(short(kind, int(tokens)), textok / "shards", textok / name_of(name, 0))


def figure_4(tokenizers: dict[str, Path], signs: Path, out: Path, seed: int) -> list[str]:
    """The speed and the quality of class-conditional DiTs of one size over latents of each tokenizer."""
    latents = {
        name: encode(str(place), signs, out / name / "latents", RESOLUTION) for name, place in tokenizers.items()
    }
    asked, reference = held_out_classes(signs)[:FIGURE_SAMPLES], signs / "combinations"
    held_out = list(open_dataset(reference))[:FIGURE_SAMPLES]
    runs = {name: run(figure_run(name, seed), of, out / name / f"figure-{seed}") for name, of in latents.items()}
    seconds = timed(runs)
    far = {
        (name, steps): distance(samples_of(runs[name], asked, num_inference_steps=steps), reference)
        for name, steps in seconds
        if name != UNTRAINED
    }
    at_best = {
        name: distance(reconstructed(str(place), held_out, out / name / "reconstructed"), reference)
        for name, place in tokenizers.items()
        if name != UNTRAINED
    }
    head = ["latents", "tokens", "reconstructions' distance", "trained for", "pictures seen"]
    head += ["steps of drawing", "a picture takes", *(f"speed, {grid} = 1" for grid in GRIDS), "Fréchet distance"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (name, steps), takes in seconds.items():
        training, tokens = figure_run(name, seed).training, TokenShards(latents[name] / "train").manifest.tokens
        seen = (training.steps or 0) * training.global_batch_size
        cells = [
            name,
            tokens,
            show(at_best[name]) if name in at_best else "",
            f"{minutes(runs[name]):.0f} min",
            f"{seen:,}",
        ]
        cells += [steps, f"{1000 * takes:.0f} ms", *(f"{seconds[grid, steps] / takes:.1f}" for grid in GRIDS)]
        cells += [show(far[name, steps]) if (name, steps) in far else ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    few = [name for name in runs if name.startswith("textok")]
    last = FIGURE_INFERENCE_STEPS[-1]
    for name in few:
        misled = distance(misled_samples(runs[name], asked, num_inference_steps=last), reference)
        lines += ["", f"{name} in {last} steps, over latents that were drawn for another class: {show(misled)}"]
    lines += [
        "",
        "The fastest of those that the quarters do not tell apart from the grid's nearest (distances in parentheses):",
    ]
    return [*lines, *at_equal_quality(seconds, far, few), "", f"paper: {PAPER_SPEED}"]


def at_equal_quality(
    seconds: dict[tuple[str, int], float], far: dict[tuple[str, int], Score], names: list[str]
) -> list[str]:
    """For each of some latents and each grid: the fastest way to draw either of all that are no farther than its best.

    What the quarters of the pictures do not tell apart from the grid's nearest counts as equally far, on both sides.
    """
    lines = []
    for grid in GRIDS:
        nearest = min((drawn for drawn in far if drawn[0] == grid), key=lambda drawn: far[drawn].value or 0)
        good = [drawn for drawn in far if not farther(far[drawn], far[nearest])]
        fastest = {
            name: min((drawn for drawn in good if drawn[0] == name), key=lambda drawn: seconds[drawn], default=None)
            for name in (grid, *names)
        }
        theirs = fastest[grid]
        assert theirs is not None  # the nearest is good
        for name in names:
            if (ours := fastest[name]) is None:
                lines.append(f"- {name}: in no number of steps as near as {_named(nearest, far)}")
            else:
                ratio = seconds[theirs] / seconds[ours]
                lines.append(f"- {_named(ours, far)}: {ratio:.1f} times as fast as {_named(theirs, far)}")
    return lines


def _named(drawn: tuple[str, int], far: dict[tuple[str, int], Score]) -> str:
    return f"{drawn[0]} in {drawn[1]} steps ({far[drawn].value:.1f})"


def farther(one: Score, other: Score) -> bool:
    """Whether every quarter's distance is larger than any of the other's."""
    return min(one.parts or [0]) > max(other.parts or [0])


def figure_run(name: str, seed: int) -> GeneratorRunConfig:
    """dit-nano, shorter, and with smaller batches where a picture has many tokens."""
    base = seeded(presets.get_generator("dit-nano"), seed)
    steps, pictures = FIGURE.get(name, FIGURE["kl-nano"])
    training = dataclasses.replace(base.training, steps=steps, global_batch_size=pictures, evaluation_pictures=32)
    return dataclasses.replace(base, name="dit-nano-figure", training=training)


def minutes(trained: Path) -> float:
    """How long all steps of a run took, without looks at what it draws."""
    logged = [record for record in RunFolder(trained).read_metrics() if "seconds_per_step" in record]
    return statistics.median(record["seconds_per_step"] for record in logged) * logged[-1]["step"] / 60


def timed(runs: dict[str, Path]) -> dict[tuple[str, int], float]:
    """Seconds to draw a picture in so many steps, of several together, tokenizer included.

    Medians of rounds in which all take turns. No two drawings hear the same captions, which a text encoder would then
    read once.
    """
    pipelines = {name: load(str(trained)) for name, trained in runs.items()}
    found: dict[tuple[str, int], list[float]] = {(name, steps): [] for name in runs for steps in FIGURE_INFERENCE_STEPS}
    for pipeline in pipelines.values():
        pipeline.generate([0] * TIMED, num_inference_steps=2)
    seeds = itertools.count(TIMED, TIMED)
    for _ in range(ROUNDS):
        for name, steps in found:
            start = time.perf_counter()
            pipelines[name].generate([0] * TIMED, num_inference_steps=steps, seed=next(seeds))
            found[name, steps].append((time.perf_counter() - start) / TIMED)
    return {drawn: statistics.median(seconds) for drawn, seconds in found.items()}


def table_3(tokenizers: dict[str, Path], captioned: Path, signs: Path, out: Path, seed: int) -> list[str]:
    """What the same text-conditional generator draws through TexTok and through its baseline.

    From the prompts of the held-out signs, as far as the paper's metrics go; its CLIP score wants weights that no
    package carries. From those of `legibility`, what is read.
    """
    config = seeded(presets.get_generator("dit-t2i-nano"), seed)
    prompts = [sign.captions[0] for sign in open_dataset(signs / "combinations")]
    lines = ["| generated through | Fréchet distance |", "|---" * 2 + "|"]
    readings = {"rendered": read_originals(out / "rendered", RESOLUTION)}
    for name, tokenizer in tokenizers.items():
        place = str(tokenizer)
        latents = encode(place, captioned, out / name / "captioned", RESOLUTION)
        trained = ship(run(config, latents, out / name / f"t2i-{seed}"), out / f"shipped-{seed}" / PAIR[name])
        far = distance(samples_of(trained, prompts=prompts), signs / "combinations")
        lines.append(f"| {name} | {show(far)} |")
        readings[f"{name}, reconstructed"] = read_reconstructed(place, out / name / "reconstructed", RESOLUTION)
        readings[f"{name}, generated"] = read_generated(trained, out / name / f"generated-{seed}")
        readings[f"{name}, latents of another prompt"] = read_misled(trained, out / name / f"misled-{seed}")
    ours, theirs = PAIR
    shown = read_showpiece(out / f"shipped-{seed}" / PAIR[ours], out / ours / f"showpiece-{seed}")
    lines += ["", f"paper: {PAPER_TEXT}", ""]
    return [*lines, table(readings, [(f"{ours}, generated", f"{theirs}, generated")]), "", shown]


if __name__ == "__main__":
    tyro.cli(main)
