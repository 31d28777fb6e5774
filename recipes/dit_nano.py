"""Train `dit-nano` and `dit-t2i-nano`, and reproduce TexTok's Figure 4 and Table 3 in miniature.

    python recipes/dit_nano.py --textok FOLDER_OF_textok_nano.py --out FOLDER [--vae FOLDER_OF_AN_AutoencoderKL]

Needs the `plots` extra.

Plain signs are encoded as latents of several tokenizers: `textok-nano` and `baseline-nano`, which are shipped with
imtok, those of recipes/textok_nano.py, and two small KL autoencoders that are trained here on the same pictures.
Class-conditional DiTs of one size are trained on the latents of each tokenizer, for fewer steps where there are more
tokens, and are compared in speed and quality (Figure 4). Text-conditional DiTs are trained on the latents of TexTok and
of its baseline (Table 3), of signs and of the captioned photographs that these tokenizers were trained on, and a text
recognizer reads their signs. Photographs have no class, so the class-conditional DiTs are trained on signs only. Every
step can be killed and resumes where it was.

TexTok's decoder is conditioned on a caption that contains the word: the prompt, or, for a class, a caption of this
class that no training picture has. As a control, the tables also show what is read when the decoder receives this
caption with latents that were sampled for another prompt or class.
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
    check_judges,
    class_consistency,
    decoder_captions,
    read_generated,
    read_originals,
    read_reconstructed,
    read_showpiece,
    read_with_wrong_captions,
    reconstructed,
    rendered,
    samples_with_wrong_captions,
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
    store_text_features,
    with_photographs,
)
from textok_nano import short, shortened, text_config_of

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
"""Tokenizers of Figure 4, with 8, 16, 32, 256 and 1,024 tokens, trained on the same pictures; for each the training
steps and the batch size of the DiT over its latents. DiTs over fewer tokens get more of both, to make the training
times more equal; the table reports these times."""
PAIR = {"textok-nano": "dit-t2i-nano", "baseline-nano": "dit-t2i-nano-baseline"}
"""Tokenizers of Table 3, and the names of the generators over them; all of them are shipped or can be."""
FIGURE_SAMPLES, FIGURE_INFERENCE_STEPS = 128, (5, 10, 20)
GRID_STEPS = 600
"""Training steps of the tokenizers in `GRIDS`; a step takes five to ten times as long, and they do not converge."""
GRIDS = ("kl-nano", "kl-nano-f2")
"""Tokenizers of Figure 4 with a grid of latents, as many as DiT-XL/2 has at 256 and at 512 px."""
VAE, UNTRAINED = "vae", "vae of random weights"
"""Names in Figure 4 of an autoencoder that the user provides."""
PAPER_SPEED = "14.3 times as fast at 256 px (256 tokens), 93.5 times at 512 px (1,024 tokens), at no worse FID"
PAPER_TEXT = "FID 2.82 and CLIP score 29.23 for TexTok, on ImageNet; its table is missing from our text"
TIMED = 8
"""Number of pictures that are sampled together when timed."""
ROUNDS = 3


def main(
    textok: Path, out: Path, vae: Path | None = None, seed: int = 0, parts: tuple[Part, ...] = get_args(Part)
) -> None:
    """Run the recipe, or parts of it; each part prints its results and writes them to OUT/PART-SEED.md.

    Args:
        textok: folder with the runs of recipes/textok_nano.py.
        out: working folder.
        vae: folder of an AutoencoderKL of diffusers, such as SD-VAE, for an additional row of Figure 4; if the folder
            has only a config.json, the weights are random and the row shows the speed alone.
        seed: seed of the training.
        parts: parts of the recipe to run.
    """
    check_judges()
    for name in PAIR:
        locate(name)  # fails here rather than later if weights are missing
    out = out.resolve()
    user_vae = {} if vae is None else with_weights(vae, out)
    signs = render(out / "signs", RESOLUTION, PLAIN_SIGNS)
    text = text_config_of(presets.get("textok-nano"))
    store_text_features(signs, text)
    for part in parts:
        if part == "table-3":
            captioned = with_photographs(signs, textok / "shards", text, out / "captioned")
            lines = table_3({name: open_tokenizer(name, textok, out) for name in PAIR}, captioned, signs, out, seed)
        elif part == "dit-nano":
            lines = by_class(open_tokenizer("textok-nano", textok, out), signs, out, seed)
        else:
            tokenizers = {name: open_tokenizer(name, textok, out) for name in FIGURE}
            lines = figure_4(tokenizers | user_vae, signs, out, seed)
        result = "\n".join(lines)
        write_text(out / f"{part}-{seed}.md", result + "\n")
        print(result)


def with_weights(vae: Path, out: Path) -> dict[str, Path]:
    """Return the AutoencoderKL by its name in Figure 4; without weights, a random one, written to OUT/vae-untrained."""
    folder = find_model(vae) or vae
    if (folder / WEIGHTS).exists():
        return {VAE: folder}
    if other_weights := [file.name for file in folder.glob("*") if file.suffix in (".bin", ".safetensors")]:
        raise SystemExit(f"{folder}: has {other_weights[0]}, and weights are read from {WEIGHTS}")
    torch.manual_seed(0)
    model = build_untrained(folder, "AutoencoderKL", read_json(folder / "config.json"))
    model.save_pretrained(out / "vae-untrained")
    return {UNTRAINED: out / "vae-untrained"}


def by_class(tokenizer: Path, signs: Path, out: Path, seed: int) -> list[str]:
    """Train the shipped class-conditional generator and evaluate its samples for the classes of held-out signs."""
    latents = encode(str(tokenizer), signs, out / tokenizer.name / "latents", RESOLUTION)
    trained = run(seeded(presets.get_generator("dit-nano"), seed), latents, out / f"dit-nano-{seed}")
    final = ship(trained, out / f"shipped-{seed}" / "dit-nano")
    held_out, labels = list(open_dataset(signs / "held-out")), held_out_classes(signs)
    # Compared with reconstructions, so that the loss of the tokenizer does not count against the generator.
    reference = reconstructed(str(tokenizer), held_out, out / "reconstructed")
    samples, captions = samples_of(final, labels), decoder_captions(final, labels)
    mismatched = samples_with_wrong_captions(final, labels)
    return [
        f"dit-nano: {DISTANCE} to reconstructions {show(distance(samples, reference))}",
        f"signs of the kind asked for: {class_consistency(samples, labels, captions)}",
        f"over latents of another kind: {class_consistency(mismatched, labels, captions)}",
        f"rendered ones: {class_consistency(rendered(held_out, out / 'rendered' / 'kinds'), labels)}",
    ]


def open_tokenizer(name: str, textok: Path, out: Path) -> Path:
    """Return a shipped tokenizer, or one trained on the pictures of recipes/textok_nano.py; train it if necessary."""
    if name in PAIR:
        return Path(name)
    if name.startswith("kl"):
        return train_tokenizer(shortened(presets.get(name), GRID_STEPS), textok / "shards", out / name / "tokenizer")
    kind, tokens = name.split("-")
    return train_tokenizer(short(kind, int(tokens)), textok / "shards", textok / name_of(name, 0))


def figure_4(tokenizers: dict[str, Path], signs: Path, out: Path, seed: int) -> list[str]:
    """Compare the speed and the quality of class-conditional DiTs of one size over the latents of each tokenizer."""
    latents = {
        name: encode(str(place), signs, out / name / "latents", RESOLUTION) for name, place in tokenizers.items()
    }
    labels, reference = held_out_classes(signs)[:FIGURE_SAMPLES], signs / "held-out"
    held_out = list(open_dataset(reference))[:FIGURE_SAMPLES]
    runs = {name: run(figure_run(name, seed), path, out / name / f"figure-{seed}") for name, path in latents.items()}
    seconds = timed(runs)
    distances = {
        (name, steps): distance(samples_of(runs[name], labels, num_inference_steps=steps), reference)
        for name, steps in seconds
        if name != UNTRAINED
    }
    reconstruction_distances = {
        name: distance(reconstructed(str(place), held_out, out / name / "reconstructed"), reference)
        for name, place in tokenizers.items()
        if name != UNTRAINED
    }
    head = ["latents", "tokens", "reconstructions' distance", "trained for", "pictures seen"]
    head += ["steps of drawing", "a picture takes", *(f"speed, {grid} = 1" for grid in GRIDS), "Fréchet distance"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (name, steps), duration in seconds.items():
        training, tokens = figure_run(name, seed).training, TokenShards(latents[name] / "train").manifest.tokens
        seen = (training.steps or 0) * training.global_batch_size
        cells = [
            name,
            tokens,
            show(reconstruction_distances[name]) if name in reconstruction_distances else "",
            f"{minutes(runs[name]):.0f} min",
            f"{seen:,}",
        ]
        cells += [steps, f"{1000 * duration:.0f} ms", *(f"{seconds[grid, steps] / duration:.1f}" for grid in GRIDS)]
        cells += [show(distances[name, steps]) if (name, steps) in distances else ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    few = [name for name in runs if name.startswith("textok")]
    last = FIGURE_INFERENCE_STEPS[-1]
    for name in few:
        misled = distance(samples_with_wrong_captions(runs[name], labels, num_inference_steps=last), reference)
        lines += ["", f"{name} in {last} steps, over latents that were drawn for another class: {show(misled)}"]
    lines += [
        "",
        "The fastest of those that the quarters do not tell apart from the grid's nearest (distances in parentheses):",
    ]
    return [*lines, *at_equal_quality(seconds, distances, few), "", f"paper: {PAPER_SPEED}"]


def at_equal_quality(
    seconds: dict[tuple[str, int], float], far: dict[tuple[str, int], Score], names: list[str]
) -> list[str]:
    """Compare speed at equal quality: the fastest numbers of steps that are no worse than the best of a grid.

    Every tokenizer in `names` is compared with every grid. A Fréchet distance that the quarters of the pictures do not
    distinguish from the grid's smallest counts as equal, for the tokenizer and for the grid.

    Args:
        seconds: seconds per picture, by tokenizer and number of steps.
        far: Fréchet distances of the samples, by tokenizer and number of steps.
        names: tokenizers that are compared with the grids.

    Returns:
        A line for each comparison.
    """
    lines = []
    for grid in GRIDS:
        best = min((key for key in far if key[0] == grid), key=lambda key: far[key].value or 0)
        good = [key for key in far if not farther(far[key], far[best])]
        fastest = {
            name: min((key for key in good if key[0] == name), key=lambda key: seconds[key], default=None)
            for name in (grid, *names)
        }
        theirs = fastest[grid]
        assert theirs is not None  # the best of the grid is good
        for name in names:
            if (ours := fastest[name]) is None:
                lines.append(f"- {name}: in no number of steps as near as {_named(best, far)}")
            else:
                ratio = seconds[theirs] / seconds[ours]
                lines.append(f"- {_named(ours, far)}: {ratio:.1f} times as fast as {_named(theirs, far)}")
    return lines


def _named(key: tuple[str, int], distances: dict[tuple[str, int], Score]) -> str:
    return f"{key[0]} in {key[1]} steps ({distances[key].value:.1f})"


def farther(one: Score, other: Score) -> bool:
    """Return whether the distance of every quarter is larger than that of any quarter of the other score."""
    return min(one.parts or [0]) > max(other.parts or [0])


def figure_run(name: str, seed: int) -> GeneratorRunConfig:
    """Return dit-nano's config with fewer steps, and with smaller batches where a picture has many tokens."""
    base = seeded(presets.get_generator("dit-nano"), seed)
    steps, pictures = FIGURE.get(name, FIGURE["kl-nano"])
    training = dataclasses.replace(base.training, steps=steps, global_batch_size=pictures, evaluation_pictures=32)
    return dataclasses.replace(base, name="dit-nano-figure", training=training)


def minutes(trained: Path) -> float:
    """Return the minutes that all training steps of a run took, without previews and evaluation."""
    logged = [record for record in RunFolder(trained).read_metrics() if "seconds_per_step" in record]
    return statistics.median(record["seconds_per_step"] for record in logged) * logged[-1]["step"] / 60


def timed(runs: dict[str, Path]) -> dict[tuple[str, int], float]:
    """Return the seconds per picture of sampling and decoding several together, by run and number of steps.

    They are medians of rounds in which all runs take turns. No two calls use the same captions, which a text encoder
    would otherwise encode only once.
    """
    pipelines = {name: load(str(trained)) for name, trained in runs.items()}
    times: dict[tuple[str, int], list[float]] = {(name, steps): [] for name in runs for steps in FIGURE_INFERENCE_STEPS}
    for pipeline in pipelines.values():
        pipeline.generate([0] * TIMED, num_inference_steps=2)
    seeds = itertools.count(TIMED, TIMED)
    for _ in range(ROUNDS):
        for name, steps in times:
            start = time.perf_counter()
            pipelines[name].generate([0] * TIMED, num_inference_steps=steps, seed=next(seeds))
            times[name, steps].append((time.perf_counter() - start) / TIMED)
    return {key: statistics.median(seconds) for key, seconds in times.items()}


def table_3(tokenizers: dict[str, Path], captioned: Path, signs: Path, out: Path, seed: int) -> list[str]:
    """Compare the same text-conditional generator over the latents of TexTok and of its baseline.

    Samples for the prompts of the held-out signs are scored by a Fréchet distance; the paper's CLIP score needs weights
    that no package provides. Samples for the prompts of `legibility` are read by a text recognizer.
    """
    config = seeded(presets.get_generator("dit-t2i-nano"), seed)
    prompts = [sign.captions[0] for sign in open_dataset(signs / "held-out")]
    lines = ["| generated through | Fréchet distance |", "|---" * 2 + "|"]
    readings = {"rendered": read_originals(out / "rendered", RESOLUTION)}
    for name, tokenizer in tokenizers.items():
        place = str(tokenizer)
        latents = encode(place, captioned, out / name / "captioned", RESOLUTION)
        trained = ship(run(config, latents, out / name / f"t2i-{seed}"), out / f"shipped-{seed}" / PAIR[name])
        score = distance(samples_of(trained, prompts=prompts), signs / "held-out")
        lines.append(f"| {name} | {show(score)} |")
        readings[f"{name}, reconstructed"] = read_reconstructed(place, out / name / "reconstructed", RESOLUTION)
        readings[f"{name}, generated"] = read_generated(trained, out / name / f"generated-{seed}")
        readings[f"{name}, latents of another prompt"] = read_with_wrong_captions(
            trained, out / name / f"misled-{seed}"
        )
    textok, baseline = PAIR
    shown = read_showpiece(out / f"shipped-{seed}" / PAIR[textok], out / textok / f"showpiece-{seed}")
    lines += ["", f"paper: {PAPER_TEXT}", ""]
    return [*lines, table(readings, [(f"{textok}, generated", f"{baseline}, generated")]), "", shown]


if __name__ == "__main__":
    tyro.cli(main)
