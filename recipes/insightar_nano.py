"""Reproduce InsightTok's Table 2 in miniature: the legibility of signs that a generator samples over two tokenizers.

    python recipes/insightar_nano.py --out FOLDER

The tokenizers are `insighttok-nano` and `vqgan-nano`, twins trained with and without the text and face losses. A text
recognizer that was not used in training reads plain signs, and the twins' reconstructions of them, which bound what a
generator can reach. Signs with words of every kind are encoded as codes of each twin, and a generator is trained on
each, with exactly the same settings. Both sample the same prompts with the same seeds: unseen combinations of seen
words and colours, and unseen words. The recognizer reads the samples. All samples are made with the weights as they are
shipped, in fp16. Every step can be killed and resumes where it was.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

from pathlib import Path

import tyro
from legibility import check_judges, read_generated, read_originals, read_reconstructed, read_showpiece, table
from nano import ship
from signs import MANY_SIGNS, encode, render, run, seeded

from imtok import presets
from imtok.checkpoints import write_text

TWINS = {"insighttok-nano": "insightar-nano", "vqgan-nano": "insightar-nano-vqgan"}
"""Tokenizers, and the names of the generators over them."""
RESOLUTION = 128


def main(out: Path, seed: int = 0) -> None:
    """Run the whole recipe.

    Args:
        out: working folder.
        seed: seed of the training.
    """
    check_judges()
    out = out.resolve()
    readings = {"rendered": read_originals(out / "rendered", RESOLUTION)}
    for twin in TWINS:
        readings[f"{twin}, reconstructed"] = read_reconstructed(twin, out / twin / "reconstructed", RESOLUTION)
    print(table(readings))
    signs = render(out / "signs", RESOLUTION, MANY_SIGNS, labels=())
    config = seeded(presets.get_generator("insightar-nano"), seed)
    shown = []
    for twin, name in TWINS.items():
        codes = encode(twin, signs, out / twin / "codes", RESOLUTION)
        shipped = ship(run(config, codes, out / twin / f"run-{seed}"), out / f"shipped-{seed}" / name)
        readings[f"{twin}, generated"] = read_generated(shipped, out / twin / f"generated-{seed}")
        shown.append(f"{twin}: {read_showpiece(shipped, out / twin / f'showpiece-{seed}')}")
    insighttok, vqgan = (f"{twin}, generated" for twin in TWINS)
    lines = [table(readings, [(insighttok, vqgan)]), "", *shown]
    text = "\n".join(lines)
    write_text(out / f"table-{seed}.md", text + "\n")
    print(text)


if __name__ == "__main__":
    tyro.cli(main)
