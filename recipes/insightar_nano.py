"""InsightTok's Table 2 in miniature: the same generator over the codes of both twins, and what is read in its signs.

    python recipes/insightar_nano.py --out FOLDER

What happens: plain signs are rendered and written down as codes of each twin; one generator is trained on each, alike
to the last setting; both draw the same prompts with the same seeds, of unseen combinations of seen words and colours,
and of unseen words; a judge that trained nothing reads the signs. What it reads on the signs themselves, and on the
twins' reconstructions of them, stands beside. Every step can be killed and goes on where it was.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

from pathlib import Path

import tyro
from legibility import check_judges, read_generated, read_originals, read_reconstructed, read_showpiece, table
from nano import ship
from signs import encode, render, run, seeded

from imtok import presets
from imtok.checkpoints import write_text

TWINS = ("insighttok-nano", "vqgan-nano")
RESOLUTION = 128


def main(out: Path, seed: int = 0) -> None:
    """Run the whole recipe.

    Args:
        out: working folder.
        seed: of the training.
    """
    check_judges()
    out = out.resolve()
    signs = render(out / "signs", RESOLUTION)
    config = seeded(presets.get_generator("insightar-nano"), seed)
    runs = {
        twin: run(config, encode(twin, signs, out / twin / "codes", RESOLUTION), out / twin / f"run-{seed}")
        for twin in TWINS
    }
    readings = {"rendered": read_originals(out / "rendered", RESOLUTION)}
    for twin, trained in runs.items():
        readings[f"{twin}, reconstructed"] = read_reconstructed(twin, out / twin / "reconstructed", RESOLUTION)
        readings[f"{twin}, generated"] = read_generated(trained, out / twin / f"generated-{seed}")
    lines = [table(readings, [(f"{TWINS[0]}, generated", f"{TWINS[1]}, generated")]), ""]
    for twin, trained in runs.items():
        lines.append(f"{twin}: {read_showpiece(trained, out / twin / f'showpiece-{seed}')}")
    ship(runs[TWINS[0]], out / "shipped" / "insightar-nano")
    text = "\n".join(lines)
    write_text(out / f"table-{seed}.md", text + "\n")
    print(text)


if __name__ == "__main__":
    tyro.cli(main)
