"""Choose sampling settings by what a text recognizer reads on a generator's signs.

    python recipes/choose_sampling.py --generator RUN --out FOLDER [--guidance-scale 1 2 3] [--top-p .9 1]

The prompts are combinations of seen words and colours that occur neither in the training nor in the recipes' tables.
Of a generator whose classes are words, every other class is sampled, with other seeds than for the recipe's table.
Every setting samples with the same seeds. For settings whose samples exist already, only the reading is repeated.
"""

import itertools
from pathlib import Path
from typing import Any

import tyro
from legibility import Prompts, Readings, check_judges, prompts_for, read_drawn, read_signs, unseen_signs
from nano_data import plain_signs
from signs import HELD_OUT

from imtok.evaluation.statistics import interval
from imtok.generators.catalog import load
from imtok.generators.generate import generate

PROMPTS = 40


def main(
    generator: str,
    out: Path,
    guidance_scale: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 5.0),
    top_p: tuple[float, ...] = (),
    temperature: tuple[float, ...] = (),
) -> None:
    """Sample with all combinations of settings and read the samples.

    Args:
        generator: a shipped generator or a run folder.
        out: working folder.
        guidance_scale: guidance scales to try.
        top_p: values of top-p to try; by default the generator's own. Diffusion has no top-p.
        temperature: temperatures to try; by default the generator's own. Diffusion has no temperature.
    """
    check_judges()
    tried = {"guidance_scale": guidance_scale, "top_p": top_p, "temperature": temperature}
    tried = {name: values for name, values in tried.items() if values}
    read = read_labels if load(generator).generator.conditioned_on == "labels" else read_prompts
    print(f"| {' | '.join(tried)} | NED | words |\n{'|---' * (len(tried) + 2)}|")
    for values in itertools.product(*tried.values()):
        settings = dict(zip(tried, values, strict=True))
        folder = out.resolve() / "-".join(f"{name}-{value:g}" for name, value in settings.items())
        found = read(generator, folder, **settings)
        scores = (interval(found[name]) for name in ("rendered_text_ned", "rendered_word_accuracy"))
        cells = [f"{value:g}" for value in values]
        cells += [f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})" for score in scores]
        print(f"| {' | '.join(cells)} |", flush=True)


def read_prompts(generator: str, folder: Path, **sampling: Any) -> Readings:
    """Return what is read on samples of the prompts."""
    return read_drawn(generator, folder, kept_for_the_choice(), **sampling)


def read_labels(generator: str, folder: Path, **sampling: Any) -> Readings:
    """Return what is read on samples of classes that are words."""
    words = load(generator).generator.config.classes[::2]
    generate(generator, folder, words, seed=HELD_OUT, **sampling)
    return read_signs(folder, words)


def kept_for_the_choice() -> Prompts:
    """Return prompts of which none is among those of `legibility.unseen_signs`."""
    words = dict(prompts_for(plain_signs(4 * PROMPTS, seed=3, split="combinations")))
    for reported, _ in prompts_for(unseen_signs("combinations")):
        words.pop(reported, None)
    return list(words.items())[:PROMPTS]


if __name__ == "__main__":
    tyro.cli(main)
