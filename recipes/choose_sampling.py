"""Which settings of sampling let a judge read the most of what a generator draws, on prompts kept for the choice.

    python recipes/choose_sampling.py --generator RUN --out FOLDER [--guidance-scale 1 2 3] [--top-p .9 1]

The prompts are combinations of seen words and colours that neither the training nor the recipes' tables have. Every
setting draws them with the same seeds. A setting that is drawn already is only read again.
"""

import itertools
from pathlib import Path

import tyro
from legibility import Prompts, asked, check_judges, read_drawn, wanted
from nano_data import plain_signs

from imtok.evaluation.statistics import interval

PROMPTS = 40


def main(
    generator: str,
    out: Path,
    guidance_scale: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 5.0),
    top_p: tuple[float, ...] = (),
    temperature: tuple[float, ...] = (),
) -> None:
    """Draw with all combinations and read.

    Args:
        generator: a shipped generator or a run folder.
        out: working folder.
        guidance_scale: to try.
        top_p: to try; none: the generator's own. Diffusion has none.
        temperature: to try; none: the generator's own. Diffusion has none.
    """
    check_judges()
    tried = {"guidance_scale": guidance_scale, "top_p": top_p, "temperature": temperature}
    tried = {name: values for name, values in tried.items() if values}
    prompts = kept_for_the_choice()
    print(f"| {' | '.join(tried)} | NED | words |\n{'|---' * (len(tried) + 2)}|")
    for values in itertools.product(*tried.values()):
        settings = dict(zip(tried, values, strict=True))
        folder = out.resolve() / "-".join(f"{name}-{value:g}" for name, value in settings.items())
        found = read_drawn(generator, folder, prompts, **settings)
        scores = (interval(found[name]) for name in ("rendered_text_ned", "rendered_word_accuracy"))
        cells = [f"{value:g}" for value in values]
        cells += [f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})" for score in scores]
        print(f"| {' | '.join(cells)} |", flush=True)


def kept_for_the_choice() -> Prompts:
    """None of them is one of `legibility.wanted`."""
    others = dict(asked(plain_signs(4 * PROMPTS, seed=3, split="combinations")))
    for reported, _ in asked(wanted("combinations")):
        others.pop(reported, None)
    return list(others.items())[:PROMPTS]


if __name__ == "__main__":
    tyro.cli(main)
