"""InsightTok's Table 2 in miniature: the same generator over the codes of both twins, and what is read in its signs.

    python recipes/insightar_nano.py --out FOLDER

What happens: a judge that trained nothing reads plain signs, and the twins' reconstructions of them, which is the most
that a generator can reach; signs with words of every kind are written down as codes of each twin; one generator is
trained on each, alike to the last setting; both draw the same prompts with the same seeds, of unseen combinations of
seen words and colours, and of unseen words, and the judge reads what they drew. All is drawn by the weights as they are
shipped, in fp16. Every step can be killed and goes on where it was.
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
"""Tokenizers, and what the generators over them are called."""
RESOLUTION = 128


def main(out: Path, seed: int = 0) -> None:
    """Run the whole recipe.

    Args:
        out: working folder.
        seed: of the training.
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
    ours, theirs = (f"{twin}, generated" for twin in TWINS)
    lines = [table(readings, [(ours, theirs)]), "", *shown]
    text = "\n".join(lines)
    write_text(out / f"table-{seed}.md", text + "\n")
    print(text)


if __name__ == "__main__":
    tyro.cli(main)
