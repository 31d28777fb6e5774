"""Makes `far-nano`, and FQGAN's Table 4 in miniature: three heads on the same codes, from the same data and steps.

    python recipes/far_nano.py --out FOLDER

Plain signs are rendered and encoded by a tokenizer with two codebooks. Generators with the factorized, the linear and
the MLP head are trained on the codes, conditioned on the kind of the sign's word, for fewer steps than `far-nano`,
which is trained last. Each is evaluated by the likelihood of held-out signs and by the Fréchet distance between these
signs and as many samples of the same classes. On `far-nano`'s samples, a text recognizer that was not used in training
checks whether the word is of the requested kind. Every step can be interrupted and resumes where it stopped.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

import dataclasses
from pathlib import Path
from typing import get_args

import tyro
from legibility import check_judges, class_consistency, reconstructed, rendered
from nano import ship
from signs import distance, encode, held_out_classes, render, run, samples_of, seeded, show

from imtok import presets
from imtok.checkpoints import RunFolder, write_text
from imtok.data.readers import open_dataset
from imtok.generators.far import FARConfig
from imtok.generators.heads import HeadKind
from imtok.tokenizers.catalog import locate
from imtok.training.run import GeneratorRunConfig

RESOLUTION = 128
SIGNS = 32_000
STEPS = 600
"""Of each head's run."""
PAPER = {"factorized": "4.37 / 3.74", "linear": "5.19 / 6.90", "mlp": "5.59 / 8.88"}
"""gFID of FAR-L at top-k 4,096 and 8,192 and guidance 1.75; ours sample from all codes."""


def main(out: Path, tokenizer: str = "fqgan-dual-nano", seed: int = 0) -> None:
    """Run the whole recipe.

    Args:
        out: working folder.
        tokenizer: with several codebooks.
        seed: of the training.
    """
    locate(tokenizer)  # says now what would be missing later
    check_judges()
    out = out.resolve()
    signs = render(out / "signs", RESOLUTION, SIGNS)
    codes = encode(tokenizer, signs, out / Path(tokenizer).name / "codes", RESOLUTION)
    lines = [
        "| head | NLL of a position | first code | second code | Fréchet distance | paper: gFID |",
        "|---" * 6 + "|",
    ]
    base = seeded(presets.get_generator("far-nano"), seed)
    for head in get_args(HeadKind):
        trained = run(with_head(base, head), codes, out / f"{head}-{seed}")
        lines.append(f"| {head} | {' | '.join(scores(trained, signs))} | {PAPER[head]} |")
    final = ship(run(base, codes, out / f"far-nano-{seed}"), out / f"shipped-{seed}" / "far-nano")
    lines.append(f"| factorized, {base.training.phases[0].steps} steps | {' | '.join(scores(final, signs))} | |")
    lines += ["", *kinds_that_are_read(final, tokenizer, signs, out)]
    text = "\n".join(lines)
    write_text(out / f"table-{seed}.md", text + "\n")
    print(text)


def with_head(config: GeneratorRunConfig, head: HeadKind) -> GeneratorRunConfig:
    """Return the config of a short run with this head, otherwise the same."""
    assert isinstance(config.generator, FARConfig)
    training = dataclasses.replace(config.training, steps=STEPS)
    return dataclasses.replace(
        config, name=f"far-nano-{head}", generator=dataclasses.replace(config.generator, head=head), training=training
    )


def scores(trained: Path, signs: Path) -> list[str]:
    """Return the NLL of held-out signs in nats per position, in all and per codebook, and the samples' distance."""
    likely = [record for record in RunFolder(trained).read_metrics() if "validation/nll" in record][-1]
    nll = [likely[f"validation/{name}"] for name in ("nll", "nll_0", "nll_1")]
    far = distance(samples_of(trained, held_out_classes(signs)), signs / "combinations")
    return [*(f"{value:.3f}" for value in nll), show(far)]


def kinds_that_are_read(generator: Path, tokenizer: str, signs: Path, out: Path) -> list[str]:
    """Return the shares of signs whose word is of the requested kind: samples, a control, and two upper bounds."""
    held_out, labels = list(open_dataset(signs / "combinations")), held_out_classes(signs)
    samples = samples_of(generator, labels)
    shuffled = [*labels[len(labels) // 2 :], *labels[: len(labels) // 2]]
    return [
        f"signs of the kind asked for: {class_consistency(samples, labels)}",
        f"of the kind that another sign was asked for: {class_consistency(samples, shuffled)}",
        f"held-out ones, reconstructed: {class_consistency(reconstructed(tokenizer, held_out, out / 'again'), labels)}",
        f"held-out ones, rendered: {class_consistency(rendered(held_out, out / 'rendered'), labels)}",
    ]


if __name__ == "__main__":
    tyro.cli(main)
